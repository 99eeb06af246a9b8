"""The operator's commands for instances, against a host that answers as it is told."""

import json

import pytest
from typer.testing import CliRunner

from sev_agent.cli.main import app
from tests.unit.cli.conftest import FAULT, UUID, ScriptedHost, missing, run, view


def test_list(host: ScriptedHost) -> None:
    """Instances are a table, a line for each."""
    host.answers["list_instances"] = [view(), view("error", name="[red]")]

    result = run("list")

    lines = result.stdout.splitlines()
    assert result.exit_code == 0
    assert {"uuid", "name", "state", "created"} <= set(lines[0].split())
    assert {UUID, "web", "active", "amd-sev", "2", "512", "MiB", "1", "GiB"} <= set(lines[1].split())
    assert "[red]" in lines[2]


def test_json(host: ScriptedHost) -> None:
    """With --json, each command prints what the host said, and nothing else."""
    host.answers |= {"list_instances": [view()], "get_instance": view(), "get_console_output": "a\x1b[2J"}

    assert json.loads(run("list", "--json").stdout) == [view()]
    assert json.loads(run("show", UUID, "--json").stdout) == view()
    assert json.loads(run("console", UUID, "--json").stdout) == {"uuid": UUID, "output": "a\x1b[2J"}


def test_show(host: ScriptedHost) -> None:
    """One instance is a line for each field, with its fault and remedy."""
    host.answers["get_instance"] = view("error", fault=FAULT)

    result = run("show", UUID)

    assert result.exit_code == 0
    assert "2 vCPU, 512 MiB, 1 GiB" in result.stdout
    assert "image.missing at step image: no [b]such[/b] image (upload it)" in result.stdout


@pytest.mark.parametrize("command", ["show", "console", "delete"])
def test_bad_uuid(host: ScriptedHost, command: str) -> None:
    """What is no UUID is refused before anybody is asked."""
    result = run(command, "web")

    assert result.exit_code == 2
    assert "'web' is not a UUID" in result.stderr
    assert not host.asked


def test_bad_broker() -> None:
    """An address that RabbitMQ cannot have is refused at once, with what one looks like, and no password is shown."""
    arguments = ["instance", "list", "--host", "node1", "--broker", "rabbit://a:s3cret@broker/"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("sev-agent: --broker: must be amqp://")
    assert "s3cret" not in result.stderr


def test_unknown_instance(host: ScriptedHost) -> None:
    """An instance that the host does not have is exit status 4."""
    host.answers["get_instance"] = missing()

    result = run("show", UUID)

    assert result.exit_code == 4
    assert "host node1 has none" in result.stderr


def test_console(host: ScriptedHost) -> None:
    """A guest's output reaches the terminal without what would steer it."""
    host.answers["get_console_output"] = "\x1b[2J\x1b[1;31mready\x1b[0m\r\n\x07\x00\x9b\u202enext\n"

    result = run("console", UUID, "--lines", "2")

    assert result.stdout == "ready\nnext\n"
    assert host.asked == [("get_console_output", {"instance_uuid": UUID, "length": 2})]


def test_delete(host: ScriptedHost) -> None:
    """A deletion is waited for until the instance is unknown."""
    host.answers["get_instance"] = [view("deleting"), view("deleting"), missing()]

    result = run("delete", UUID.upper())

    assert result.exit_code == 0
    assert result.stdout == f"Instance {UUID} is deleted.\n"
    assert [method for method, _ in host.asked] == ["terminate_instance", *["get_instance"] * 3]


def test_delete_without_waiting(host: ScriptedHost) -> None:
    """Without waiting, a deletion that was accepted is enough."""
    result = run("delete", UUID, "--no-wait", "--json")

    assert json.loads(result.stdout) == {"uuid": UUID, "state": "deleting"}
    assert host.asked == [("terminate_instance", {"instance_uuid": UUID})]


def test_delete_that_takes_too_long(host: ScriptedHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """A deletion that does not end in time is an error that says what goes on."""
    host.answers["get_instance"] = view("deleting")
    ticks = iter(range(0, 10_000, 40))
    monkeypatch.setattr("sev_agent.cli.following.time.monotonic", lambda: float(next(ticks)))

    result = run("delete", UUID)

    assert result.exit_code == 1
    assert "still deleting after 120 s" in result.stderr
