"""Putting away what was not created, where there is very much of it."""

from typing import Any

import pytest
from sqlalchemy import event

from sev_agent.api import withdrawals
from tests.compute_api import InProcessApi
from tests.unit.api.requests import make_flavor, make_image, server


async def test_very_many(api: InProcessApi, monkeypatch: pytest.MonkeyPatch) -> None:
    """They go in portions that a database takes, and those whose time is over are forgotten."""
    await make_flavor(api)
    _, made = await api.ask("POST", "/servers", json=server(make_image(api)))
    monkeypatch.setattr(withdrawals, "_REMEMBERED", 0)
    api.withdrawals.remember([*(f"unknown-{number}" for number in range(1700)), made["server"]["id"]])
    sizes: list[int] = []

    def executed(_: Any, __: Any, ___: str, parameters: Any, *____: Any) -> None:
        sizes.append(len(parameters))

    engine = api.withdrawals._database.engine.sync_engine
    event.listen(engine, "before_cursor_execute", executed)
    await api.withdrawals.settle()
    assert max(sizes) == 500
    assert (await api.ask("GET", f"/servers/{made['server']['id']}"))[0] == 404
    assert not api.withdrawals._pending
