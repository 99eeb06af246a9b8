"""A host that answers the operator's commands as it is told."""

import contextlib
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import pytest
from typer.testing import CliRunner, Result

from sev_agent.cli import following
from sev_agent.cli import instance as commands
from sev_agent.cli.main import app
from sev_agent.messaging.client import RemoteError
from sev_agent.messaging.envelope import Failure, Notification

UUID = "6b2e1f0a-0f55-4f2e-9c3c-5f6f1a0d7a01"
IMAGE = str(uuid4())


def view(state: str = "active", **changes: Any) -> dict[str, Any]:
    """An instance as a host tells it."""
    return {
        "uuid": UUID,
        "name": "web",
        "host": "node1",
        "state": state,
        "steps": [],
        "generation": "amd-sev",
        "flavor": {"name": "", "vcpus": 2, "memory_mb": 512, "root_gb": 1, "extra_specs": {}},
        "image_id": IMAGE,
        "firmware": None,
        "firmware_sha256": None,
        "auto_start": False,
        "request_id": "req-1",
        "created_at": "2026-11-22T10:00:00.123456+00:00",
        "updated_at": "2026-11-22T10:00:01+00:00",
        "fault": None,
        "waiting_for": None,
    } | changes


FAULT = {"code": "image.missing", "step": "image", "message": "no [b]such[/b] image", "remedy": "upload it"}


class ScriptedHost:
    """Answers ``answers[method]``: one after the other if it is a list, raised if it is an error."""

    def __init__(self) -> None:
        self.host = "node1"
        self.broker = None
        self.answers: dict[str, Any] = {"build_and_run_instance": None, "terminate_instance": None}
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.notifications: list[tuple[str, dict[str, Any]]] = []

    async def ask(self, method: str, **arguments: Any) -> Any:
        self.asked.append((method, arguments))
        answer = self.answers[method]
        if isinstance(answer, list) and method == "get_instance":
            answer = answer.pop(0) if len(answer) > 1 else answer[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    order = ask


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> ScriptedHost:
    scripted = ScriptedHost()

    @contextlib.asynccontextmanager
    async def connected(_: str, host: str) -> AsyncIterator[ScriptedHost]:
        assert host == "node1"
        yield scripted

    @contextlib.asynccontextmanager
    async def subscribe(_: object, **__: object) -> AsyncIterator[AsyncIterator[Notification]]:
        async def arriving() -> AsyncIterator[Notification]:
            for event_type, payload in scripted.notifications:
                yield Notification(event_type=event_type, payload=payload, publisher_id="sev_agent.node1")

        yield arriving()

    monkeypatch.setattr(commands, "connected", connected)
    monkeypatch.setattr(following, "subscribe", subscribe)
    monkeypatch.setattr(following, "_POLL_SECONDS", 0.001)
    return scripted


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["instance", *arguments, "--host", "node1"], env={"COLUMNS": "200", "NO_COLOR": "1"})


def missing() -> RemoteError:
    return RemoteError(Failure(kind="InstanceNotFound", message="host node1 has none", code="instance.not_found"))
