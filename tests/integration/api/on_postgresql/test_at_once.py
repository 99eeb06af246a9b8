"""The same thing changed by many at once: one comes first, and the others are answered as if they came later."""

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from sev_agent.api import keypairs
from tests.compute_api import InProcessApi
from tests.unit.api.requests import make_flavor
from tests.unit.api.test_public_keys import ED25519

MANY = 12
_SPECS = "/flavors/small/os-extra_specs"


async def at_once(api: InProcessApi, method: str, path: str, body: Callable[[int], Any] = lambda _: None) -> list[int]:
    """The statuses of many requests, the commonest last."""
    asked = (api.ask(method, path, json=body(number)) for number in range(MANY))
    counted = Counter(status for status, _ in await asyncio.gather(*asked))
    return [status for status, times in sorted(counted.items(), key=lambda item: item[1]) for _ in range(times)]


@pytest.fixture
async def flavor(api: InProcessApi) -> str:
    return await make_flavor(api)


async def test_extra_specs(api: InProcessApi, flavor: str) -> None:
    """All set the same key; one of those who unset it does."""
    assert await at_once(api, "POST", _SPECS, lambda number: {"extra_specs": {"a": str(number)}}) == [200] * MANY
    assert await at_once(api, "DELETE", f"{_SPECS}/a") == [200] + [404] * (MANY - 1)


async def test_the_limit_of_extra_specs(api: InProcessApi, flavor: str) -> None:
    """Many that are each below it do not pass it together."""

    def ten(number: int) -> Any:
        return {"extra_specs": {f"{number}-{each}": "" for each in range(25)}}

    assert Counter(await at_once(api, "POST", _SPECS, ten)) == {200: 5, 400: MANY - 5}


async def test_access(api: InProcessApi) -> None:
    """One gives it, one takes it away; the others hear that it is so already."""
    body = {"name": "own", "id": "own", "ram": 512, "vcpus": 1, "disk": 1, "os-flavor-access:is_public": False}
    assert (await api.ask("POST", "/flavors", json={"flavor": body}))[0] == 200
    action = "/flavors/own/action"
    assert await at_once(api, "POST", action, lambda _: {"addTenantAccess": {"tenant": "blue"}}) == [200] + [409] * (
        MANY - 1
    )
    assert await at_once(api, "POST", action, lambda _: {"removeTenantAccess": {"tenant": "blue"}}) == [200] + [404] * (
        MANY - 1
    )


async def test_a_flavor_that_goes_meanwhile(api: InProcessApi, flavor: str) -> None:
    """One deletes it; who comes after that finds nothing, and leaves nothing behind."""
    deleted, changed = await asyncio.gather(
        at_once(api, "DELETE", "/flavors/small"),
        at_once(api, "POST", _SPECS, lambda number: {"extra_specs": {f"k{number}": ""}}),
    )
    assert deleted == [202] + [404] * (MANY - 1)
    assert set(changed) <= {200, 404}
    await make_flavor(api)
    assert list((await api.ask("GET", _SPECS))[1]["extra_specs"]) == ["hw:mem_encryption"]


async def test_key_pairs(api: InProcessApi, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user gets no more of them at once than one after the other; one is deleted once."""
    monkeypatch.setattr(keypairs, "MAX_KEYPAIRS", 3)
    statuses = await at_once(
        api, "POST", "/os-keypairs", lambda number: {"keypair": {"name": f"key-{number}", "public_key": ED25519}}
    )
    assert Counter(statuses) == {200: 3, 403: MANY - 3}
    held = (await api.ask("GET", "/os-keypairs"))[1]["keypairs"]
    name = held[0]["keypair"]["name"]
    assert await at_once(api, "DELETE", f"/os-keypairs/{name}") == [202] + [404] * (MANY - 1)
