"""``sev-agent reconcile``, against a host that answers as it is told."""

import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from sev_agent.cli import reconcile as command
from sev_agent.cli.main import app
from sev_agent.errors import Unavailable

CONSUMER = "6b2e1f0a-0f55-4f2e-9c3c-5f6f1a0d7a01"


def found(**changes: Any) -> dict[str, Any]:
    """A difference as a host tells it."""
    return {
        "subject": CONSUMER,
        "kind": "wrong_size",
        "held": {"root": {"VCPU": 1}, "child": {"MEM_ENCRYPTION_CONTEXT": 1}},
        "wanted": {"root": {"VCPU": 2}},
        "repaired": True,
        "error": None,
    } | changes


class ScriptedHost:
    def __init__(self) -> None:
        self.differences: list[dict[str, Any]] = []
        self.error: Exception | None = None
        self.ordered: list[tuple[str, dict[str, Any]]] = []

    async def ask_long(self, method: str, *, limit: float, **arguments: Any) -> Any:
        assert limit >= 60
        self.ordered.append((method, arguments))
        if self.error is not None:
            raise self.error
        return {"dry_run": arguments["dry_run"], "differences": self.differences}


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> ScriptedHost:
    scripted = ScriptedHost()

    @contextlib.asynccontextmanager
    async def connected(_: str, host: str) -> AsyncIterator[ScriptedHost]:
        assert host == "node1"
        yield scripted

    monkeypatch.setattr(command, "connected", connected)
    return scripted


def run(*arguments: str) -> Result:
    return CliRunner().invoke(
        app, ["reconcile", *arguments, "--host", "node1"], env={"COLUMNS": "200", "NO_COLOR": "1"}
    )


def test_nothing_differs(host: ScriptedHost) -> None:
    """Where nothing differs it says so, and succeeds."""
    result = run()

    assert result.exit_code == 0
    assert "Placement counts what node1 runs" in result.stdout
    assert host.ordered == [("reconcile", {"dry_run": False})]


def test_repaired(host: ScriptedHost) -> None:
    """What was repaired is a line each: consumer, difference, held, wanted; that is a success."""
    host.differences = [found()]

    result = run()

    line = result.stdout.splitlines()[1]
    assert result.exit_code == 0
    assert CONSUMER in line
    assert "wrong size" in line
    assert "VCPU 1 + MEM_ENCRYPTION_CONTEXT 1" in line
    assert "yes" in line


def test_dry_run(host: ScriptedHost) -> None:
    """A dry run orders nothing else, and fails where something differs: scripts may ask."""
    host.differences = [found(repaired=False)]

    result = run("--dry-run")

    assert result.exit_code == 1
    assert host.ordered == [("reconcile", {"dry_run": True})]
    assert "no" in result.stdout.splitlines()[1].split()


def test_unrepaired(host: ScriptedHost) -> None:
    """What could not be repaired says why, and fails the command; no text of a host steers the terminal."""
    inventory = {"MEM_ENCRYPTION_CONTEXT": {"total": 3}}
    host.differences = [
        found(subject="node1_amd_sev", kind="inventory", held=inventory, repaired=False, error="in [red]use[/] \x1b[2J")
    ]

    result = run()

    assert result.exit_code == 1
    assert "MEM_ENCRYPTION_CONTEXT: total 3" in result.stdout
    assert "in [red]use[/]" in result.stdout
    assert "\x1b" not in result.stdout


def test_json(host: ScriptedHost) -> None:
    """With --json it prints what the host said."""
    host.differences = [found()]

    assert json.loads(run("--json").stdout) == {"host": "node1", "dry_run": False, "differences": [found()]}


def test_host_away(host: ScriptedHost) -> None:
    """A host that does not answer is an exit status of its own."""
    host.error = Unavailable("no answer")

    assert run().exit_code == 5
