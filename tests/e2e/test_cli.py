"""The operator's commands, run as an operator runs them."""

import json
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from sev_agent.openstack.placement import Allocation
from tests.e2e.agent_process import AgentProcess
from tests.e2e.cloud import Cloud, Result, run
from tests.e2e.ear import Ear
from tests.e2e.waiting import eventually
from tests.releases import release

pytestmark = pytest.mark.asyncio(loop_scope="session")

Command = Callable[..., Awaitable[Result]]

FAILED, USAGE, NOT_READY, NOT_FOUND, UNAVAILABLE, CONFIG_FAULT = 1, 2, 3, 4, 5, 78


@pytest.fixture
def command(cloud: Cloud) -> Command:
    """The console script, with the lab's broker and host in its environment."""
    script = Path(sys.executable).with_name("sev-agent")
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("SEV_AGENT_")},
        "SEV_AGENT_BROKER_URL": cloud.lab.rabbit_url,
        "SEV_AGENT_HOST": cloud.host.name,
    }

    async def ran(*arguments: str | Path, **more: str) -> Result:
        return await run(script, *arguments, environment={**environment, **more})

    return ran


async def test_life_of_an_instance(agent: AgentProcess, cloud: Cloud, command: Command) -> None:
    """build, list, show, console and delete do what they say, as JSON and as tables."""
    uuid = str(uuid4())
    build = ("instance", "build", "--image", str(cloud.blank), "--memory", "64", "--name", "by-hand", "--uuid", uuid)
    built = await command(*build, "--json")
    assert built.status == 0, built.errors
    view = json.loads(built.output)
    assert (view["uuid"], view["name"], view["state"], view["generation"]) == (uuid, "by-hand", "active", "amd-sev")

    listed = await command("instance", "list", "--json")
    assert [(each["uuid"], each["state"]) for each in json.loads(listed.output)] == [(uuid, "active")]
    table = await command("instance", "list", COLUMNS="200")
    assert (table.status, uuid in table.output, "by-hand" in table.output) == (0, True, True)

    shown = await command("instance", "show", uuid, "--json")
    assert json.loads(shown.output)["flavor"]["memory_mb"] == 64
    details = await command("instance", "show", uuid)
    assert "amd-sev" in details.output

    console = await command("instance", "console", uuid, "--json")
    assert (console.status, json.loads(console.output)["uuid"]) == (0, uuid)
    assert (await command("instance", "console", uuid)).status == 0

    deleted = await command("instance", "delete", uuid, "--json")
    assert (deleted.status, json.loads(deleted.output)) == (0, {"uuid": uuid, "state": "deleted"})
    assert (await command("instance", "delete", uuid)).status == 0
    assert json.loads((await command("instance", "list", "--json")).output) == []
    assert (await command("instance", "show", uuid)).status == NOT_FOUND


async def test_power_of_an_instance(agent: AgentProcess, cloud: Cloud, command: Command) -> None:
    """stop, start and reboot end with the state that they lead to; what the state does not allow is status 1."""
    await agent.stop()
    await agent.start(builds__guest_shutdown_timeout=1)
    uuid = str(await cloud.build())

    async def state(*arguments: str) -> str:
        ended = await command("instance", arguments[0], uuid, *arguments[1:], "--json")
        assert ended.status == 0, ended.errors
        return str(json.loads(ended.output)["state"])

    assert await state("stop") == "stopped"
    assert await state("stop") == "stopped"
    refused = await command("instance", "reboot", uuid)
    assert refused.status == FAILED
    assert "is stopped: it cannot reboot now" in refused.errors
    assert "start it" in refused.errors
    assert await state("start") == "active"
    assert await state("reboot", "--hard") == "active"
    assert await state("stop", "--no-wait") in {"stopping", "stopped"}
    assert "starts with host" in (await command("instance", "show", uuid)).output


async def test_build_shows_its_steps(agent: AgentProcess, cloud: Cloud, command: Command) -> None:
    """A build prints each step as it ends, on standard error."""
    built = await command("instance", "build", "--image", str(cloud.blank), "--memory", "64")
    assert built.status == 0, built.errors
    for step in ("image", "claim", "cache", "disk", "config_drive", "firmware", "define", "start"):
        assert step in built.errors
    assert "active" in built.output


async def test_build_that_fails(agent: AgentProcess, command: Command) -> None:
    """A build that fails ends with status 1 and says code, step and remedy."""
    failed = await command("instance", "build", "--image", str(uuid4()))
    assert failed.status == FAILED
    assert "image.not_found at step image" in failed.errors
    assert "(check the identifier" in failed.errors
    assert "Traceback" not in failed.errors


async def test_build_without_waiting(agent: AgentProcess, cloud: Cloud, command: Command) -> None:
    """With --no-wait a build returns once it is accepted."""
    accepted = await command("instance", "build", "--image", str(cloud.blank), "--memory", "64", "--no-wait", "--json")
    assert accepted.status == 0, accepted.errors
    await cloud.reached(json.loads(accepted.output)["uuid"], "active")


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (("build", "--image", "latest"), USAGE, "--image"),
        (("build", "--image", str(uuid4()), "--memory", "0"), USAGE, "--memory"),
        (("build", "--image", str(uuid4()), "--name", "<b>"), USAGE, "--name"),
        (("build", "--image", str(uuid4()), "--uuid", "x"), USAGE, "is not a UUID"),
        (("build", "--image", str(uuid4()), "--network", "bridge"), USAGE, "--network"),
        (("build", "--image", str(uuid4()), "--user-data", "/nonexistent"), USAGE, "--user-data"),
        (("build",), USAGE, "--image"),
        (("show", "x"), USAGE, "is not a UUID"),
        (("show", str(uuid4())), NOT_FOUND, "has no instance"),
        (("console", str(uuid4())), NOT_FOUND, "has no instance"),
        (("delete", "x"), USAGE, "is not a UUID"),
        (("stop", "x"), USAGE, "is not a UUID"),
        (("start", str(uuid4())), NOT_FOUND, "has no instance"),
        (("reboot", str(uuid4()), "--hard"), NOT_FOUND, "has no instance"),
        (("list", "--host", "nowhere"), NOT_FOUND, "sev_agent_query.nowhere"),
        (("list", "--broker", "amqp://guest:guest@127.0.0.1:1/"), UNAVAILABLE, "127.0.0.1:1"),
    ],
)
async def test_wrong_use(
    agent: AgentProcess, command: Command, arguments: tuple[str, ...], status: int, text: str
) -> None:
    """What is wrong is said on standard error without a traceback, and the exit status tells its kind."""
    ended = await command("instance", *arguments)
    assert (ended.status, ended.output) == (status, "")
    assert text in ended.errors
    assert "Traceback" not in ended.errors


async def test_lab_status(cloud: Cloud, command: Command, tmp_path: Path) -> None:
    """lab status ends with 0 for a lab all of whose services are ready, and with 3 for one that is not there."""
    up = await command("lab", "status", "--dir", cloud.lab.directory, "--json")
    assert up.status == 0, up.errors
    states = {each["name"]: each["state"] for each in json.loads(up.output)}
    assert {"rabbitmq", "keystone", "glance", "placement"} <= set(states)
    assert set(states.values()) == {"ready"}
    assert (await command("lab", "status", "--dir", tmp_path / "none")).status == NOT_READY
    table = await command("lab", "status", "--dir", cloud.lab.directory)
    assert (table.status, "placement" in table.output) == (0, True)


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("run",),
        ("demo",),
        ("lab",),
        *(("lab", name) for name in ("up", "status", "logs", "down")),
        ("instance",),
        *(("instance", name) for name in ("build", "list", "show", "console", "start", "stop", "reboot", "delete")),
    ],
)
async def test_help(command: Command, arguments: tuple[str, ...]) -> None:
    """Every command explains itself."""
    helped = await command(*arguments, "--help")
    assert (helped.status, helped.errors) == (0, "")
    assert "Usage: sev-agent" in helped.output


async def test_run_without_its_file(command: Command, tmp_path: Path) -> None:
    """run refuses a missing file with status 78, naming it."""
    path = tmp_path / "missing.toml"
    ended = await command("run", "--config", path)
    assert (ended.status, ended.output) == (CONFIG_FAULT, "")
    assert str(path) in ended.errors
    assert "Traceback" not in ended.errors


async def test_run_lists_all_faults_of_its_file(command: Command, tmp_path: Path) -> None:
    """run refuses unknown keys and bad values, all at once with their paths, of file and environment."""
    path = tmp_path / "bad.toml"
    path.write_text('colour = "blue"\n[host]\nnmae = "x"\n[http]\nport = 99999\n[builds]\nmax_concurrent = "many"\n')
    ended = await command("run", "--config", path, SEV_AGENT_HTTP__PROT="1")
    assert ended.status == CONFIG_FAULT
    for fault in ("colour", "host.nmae", "http.port", "builds.max_concurrent", "SEV_AGENT_HTTP__PROT"):
        assert fault in ended.errors
    assert "Traceback" not in ended.errors


async def test_run_check(cloud: Cloud, command: Command) -> None:
    """run --check accepts the lab's own file and starts nothing."""
    checked = await command("run", "--check", "--config", cloud.lab.agent_config(cloud.host))
    assert (checked.status, checked.errors) == (0, "")


async def test_reconcile(agent: AgentProcess, cloud: Cloud, ear: Ear, command: Command) -> None:
    """What was written and deleted by hand is shown by a dry run, repaired by a run, and told to who listens."""
    uuid, leaked = await cloud.build(), uuid4()
    counted = await cloud.placement.allocation(uuid)
    assert counted is not None
    by_hand = Allocation(
        resources={(await cloud.child()).uuid: {"MEM_ENCRYPTION_CONTEXT": 1}},
        project_id="p",
        user_id="u",
        consumer_type="INSTANCE",
    )
    await cloud.placement.put_allocation(leaked, by_hand)
    await release(cloud.placement, uuid)

    shown = await command("reconcile", "--dry-run", "--json")
    table = await command("reconcile", "--dry-run", COLUMNS="200")

    expected = {str(leaked): "surplus", str(uuid): "missing"}
    assert shown.status == table.status == FAILED, shown.errors
    assert {found["subject"]: found["kind"] for found in json.loads(shown.output)["differences"]} == expected
    assert all(each in table.output for each in expected)
    assert await cloud.placement.allocation(leaked) is not None

    repaired = await command("reconcile", "--json")
    after = await command("reconcile")

    assert repaired.status == 0, repaired.errors
    assert {
        found["subject"]: found["repaired"] for found in json.loads(repaired.output)["differences"]
    } == dict.fromkeys(expected, True)
    assert (after.status, "Placement counts what" in after.output) == (0, True)
    assert await cloud.placement.allocation(leaked) is None
    held = await cloud.placement.allocation(uuid)
    assert held is not None
    assert held.resources == counted.resources
    await eventually(lambda: _told(ear, leaked, uuid), within=5, what="sev.host.drift is heard")


async def _told(ear: Ear, *subjects: UUID) -> bool:
    drifts: list[Any] = [each.payload["differences"] for each in ear.heard if each.event_type == "sev.host.drift"]
    told = {found["subject"] for drift in drifts for found in drift}
    return {str(subject) for subject in subjects} <= told
