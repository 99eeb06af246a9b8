"""The operator's commands to start, stop and reboot an instance."""

import json

import pytest

from tests.unit.cli.conftest import FAULT, UUID, ScriptedHost, run, view


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
