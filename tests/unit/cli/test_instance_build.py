"""The operator's command to build an instance, and what it shows until the end."""

import base64
import json
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.unit.cli.conftest import FAULT, IMAGE, UUID, ScriptedHost, run, view


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


def test_build_that_starts_with_its_host(host: ScriptedHost) -> None:
    """With --auto-start the request says so."""
    host.answers["get_instance"] = view(auto_start=True)

    result = run("build", "--image", IMAGE, "--auto-start", "--no-wait")

    assert result.exit_code == 0
    assert host.asked[0][1]["instance"]["auto_start"] is True
    assert "starts with host" in result.stdout
