"""The operator's commands for instances, against a host that answers as it is told."""

import base64
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
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


def progress(step: str) -> tuple[str, dict[str, Any]]:
    return "sev.instance.create.progress", {"instance_uuid": UUID, "step": step, "seconds": 0.25}


def test_build(host: ScriptedHost) -> None:
    """A build shows its own steps as they end, and then the instance."""
    host.notifications = [
        ("sev.instance.create.end", {"instance_uuid": str(uuid4()), "state": "active"}),
        progress("image"),
        progress("start"),
        ("sev.instance.create.end", {"instance_uuid": UUID, "state": "active"}),
    ]
    host.answers["get_instance"] = view()

    result = run(
        *("build", "--image", IMAGE, "--uuid", UUID, "--name", "web", "--memory", "512", "--network", "bridge:br0")
    )

    assert result.exit_code == 0, result.stderr
    assert f"node1 has accepted instance {UUID}." in result.stderr
    assert [line.split() for line in result.stderr.splitlines() if "✓" in line] == [
        ["✓", "image", "0.250", "s"],
        ["✓", "start", "0.250", "s"],
    ]
    assert "active" in result.stdout
    asked = host.asked[0][1]["instance"]
    assert asked["flavor"] == {
        "name": "1x512",
        "vcpus": 1,
        "memory_mb": 512,
        "root_gb": 1,
        "extra_specs": {"hw:mem_encryption": "true"},
    }
    assert asked["networks"] == [{"type": "bridge", "source": "br0"}]


def test_build_in_json(host: ScriptedHost) -> None:
    """With --json the progress is silent, and the instance is all that is printed."""
    host.notifications = [progress("image"), ("sev.instance.create.end", {"instance_uuid": UUID, "state": "active"})]
    host.answers["get_instance"] = view()

    result = run("build", "--image", IMAGE, "--uuid", UUID, "--json")

    assert json.loads(result.stdout) == view()
    assert result.stderr == ""


@pytest.mark.parametrize("state", ["error", "failing"])
def test_build_that_fails(host: ScriptedHost, state: str) -> None:
    """A build that fails is exit status 1, with the step, the code and the remedy, be it undone or not."""
    host.notifications = [("sev.instance.create.error", {"instance_uuid": UUID, "state": state})]
    host.answers["get_instance"] = view(state, fault=FAULT)

    result = run("build", "--image", IMAGE, "--uuid", UUID)

    assert result.exit_code == 1
    assert "image.missing at step image: no [b]such[/b] image (upload it)" in result.stderr


def test_build_beside_a_refused_one(host: ScriptedHost) -> None:
    """Another request for the same UUID that is refused does not end the watch."""
    host.notifications = [
        ("sev.instance.create.error", {"instance_uuid": UUID, "state": "refused"}),
        progress("start"),
        ("sev.instance.create.end", {"instance_uuid": UUID, "state": "active"}),
    ]
    host.answers["get_instance"] = view()

    assert "✓ start" in run("build", "--image", IMAGE, "--uuid", UUID).stderr


def test_build_without_waiting(host: ScriptedHost) -> None:
    """Without waiting, the instance is shown as it is once it was accepted."""
    host.answers["get_instance"] = view("building", steps=["cache"])

    result = run("build", "--image", IMAGE, "--uuid", UUID, "--no-wait")

    assert result.exit_code == 0
    assert "building" in result.stdout
    assert "cache" in result.stdout


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--image", "latest"),
        ("--memory", "0"),
        ("--vcpus", "0"),
        ("--disk", "0"),
        ("--name", "<b>"),
        ("--network", "bridge"),
        ("--network", "vhost:a"),
        ("--user-data", "/nonexistent"),
    ],
)
def test_bad_build(host: ScriptedHost, option: str, value: str) -> None:
    """What the host would refuse is wrong usage here, by the option's name, and nobody is asked."""
    image = () if option == "--image" else ("--image", IMAGE)
    result = run("build", *image, option, value)

    assert result.exit_code == 2
    assert result.stderr.startswith(f"sev-agent: {option}: ")
    assert "Value error" not in result.stderr
    assert not host.asked


def test_user_data_that_is_too_large(host: ScriptedHost, tmp_path: Path) -> None:
    """A file beyond the bound of user data is wrong usage of its option."""
    (tmp_path / "data").write_bytes(b"x" * 70_000)
    result = run("build", "--image", IMAGE, "--user-data", str(tmp_path / "data"))

    assert result.exit_code == 2
    assert result.stderr.startswith("sev-agent: --user-data: ")
    assert not host.asked


def test_user_data(host: ScriptedHost, tmp_path: Path) -> None:
    """A file's bytes arrive as base64."""
    (tmp_path / "data").write_bytes(b"\x00#!/bin/sh\n")
    host.answers["get_instance"] = view()

    run("build", "--image", IMAGE, "--user-data", str(tmp_path / "data"), "--no-wait")

    assert base64.b64decode(host.asked[0][1]["instance"]["user_data"]) == b"\x00#!/bin/sh\n"


def test_build_that_takes_too_long(host: ScriptedHost) -> None:
    """A build that is being undone for longer than one waits says why."""
    host.notifications = [progress("image")] * 50
    host.answers["get_instance"] = view("failing", fault=FAULT)

    with pytest.MonkeyPatch.context() as patch:
        ticks = iter(range(0, 10_000, 100))
        patch.setattr("sev_agent.cli.following.time.monotonic", lambda: float(next(ticks)))
        result = run("build", "--image", IMAGE, "--uuid", UUID)

    assert result.exit_code == 1
    assert "still failing after 600 s: image.missing" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "method", "asked", "passing", "then"),
    [
        (("start",), "start_instance", {}, "starting", "active"),
        (("stop",), "stop_instance", {}, "stopping", "stopped"),
        (("reboot",), "reboot_instance", {"reboot_type": "SOFT"}, "rebooting", "active"),
        (("reboot", "--hard"), "reboot_instance", {"reboot_type": "HARD"}, "restarting", "active"),
    ],
)
def test_power(
    host: ScriptedHost, arguments: tuple[str, ...], method: str, asked: dict[str, str], passing: str, then: str
) -> None:
    """A start, a stop or a reboot is waited for until the instance stands."""
    host.answers |= {method: {"uuid": UUID, "state": passing}, "get_instance": [view(passing), view(then)]}

    result = run(arguments[0], UUID.upper(), *arguments[1:], "--json")

    assert result.exit_code == 0
    assert json.loads(result.stdout)["state"] == then
    assert host.asked[0] == (method, {"instance_uuid": UUID, **asked})


def test_power_without_waiting(host: ScriptedHost) -> None:
    """Without waiting, a stop that was accepted is enough, whatever was before it."""
    host.answers |= {"stop_instance": None, "get_instance": view("stopping", fault=FAULT)}

    result = run("stop", UUID, "--no-wait", "--json")

    assert result.exit_code == 0
    assert json.loads(result.stdout)["state"] == "stopping"


def test_start_that_fails(host: ScriptedHost) -> None:
    """A start that finds no slot ends with status 1, the reason and the remedy."""
    fault = {"code": "placement.full", "step": "start", "message": "every slot is taken", "remedy": "stop another"}
    host.answers |= {"start_instance": None, "get_instance": [view("starting"), view("stopped", fault=fault)]}

    result = run("start", UUID)

    assert result.exit_code == 1
    assert "placement.full at step start: every slot is taken (stop another)" in result.stderr


def test_stop_that_takes_too_long(host: ScriptedHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stop that does not end in time is an error that says how to follow it."""
    host.answers |= {"stop_instance": None, "get_instance": view("stopping")}
    ticks = iter(range(0, 10_000, 40))
    monkeypatch.setattr("sev_agent.cli.following.time.monotonic", lambda: float(next(ticks)))

    result = run("stop", UUID)

    assert result.exit_code == 1
    assert "still stopping after 120 s" in result.stderr


def test_build_that_starts_with_its_host(host: ScriptedHost) -> None:
    """With --auto-start the request says so."""
    host.answers["get_instance"] = view(auto_start=True)

    result = run("build", "--image", IMAGE, "--auto-start", "--no-wait")

    assert result.exit_code == 0
    assert host.asked[0][1]["instance"]["auto_start"] is True
    assert "starts with host" in result.stdout
