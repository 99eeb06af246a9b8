"""The lab's services, really started: up, healed, side by side, and gone without a trace."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import aiohttp
import pytest
from pydantic import SecretStr

from sev_agent.config import AuthSection, ServiceSection
from sev_agent.lab import processes, rabbitmq
from sev_agent.lab.accounts import service_user
from sev_agent.lab.cloud import Lab
from sev_agent.lab.directory import mounts_below
from sev_agent.lab.processes import MarkedProcess
from sev_agent.lab.service import LabError
from sev_agent.lab.supervisor import State
from sev_agent.openstack.client import ServiceClient
from sev_agent.openstack.exchange import RequestRefused
from sev_agent.openstack.identity import AuthenticationFailed, KeystoneIdentity

NAMES = ["rabbitmq-epmd", "rabbitmq", "keystone", "glance", "placement"]
CACHE = Path(os.environ.get("SEV_AGENT_LAB_CACHE", "/var/cache/sev-agent-lab"))


def new_lab() -> Lab:
    """A lab without hosts, whose path leaves room for sockets."""
    return Lab(Path(tempfile.mkdtemp(prefix="sev-lab-", dir="/tmp")), cache=CACHE)


def remove(lab: Lab) -> None:
    asyncio.run(lab.down())
    shutil.rmtree(lab.directory)


def up(lab: Lab) -> None:
    asyncio.run(lab.up(hosts=0, agents=False))


def leaders(lab: Lab) -> dict[str, int]:
    return {process.service: process.pid for process in processes.find(lab.directory) if process.leader}


def states(lab: Lab) -> dict[str, State]:
    return {status.name: status.state for status in asyncio.run(lab.status())}


def command(lab: Lab, name: str, *options: str) -> list[str]:
    return [sys.executable, "-m", "sev_agent", "lab", name, "--dir", str(lab.directory), *options]


def run(lab: Lab, name: str, *options: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command(lab, name, *options), check=False, capture_output=True, text=True, timeout=120)


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def shared() -> Iterator[Lab]:
    lab = new_lab()
    try:
        up(lab)
        yield lab
    finally:
        remove(lab)


@pytest.fixture
def lab(shared: Lab) -> Lab:
    """The shared lab with every service ready, whatever a test before did to it."""
    up(shared)
    return shared


def test_every_service_is_ready_and_up_again_changes_nothing(lab: Lab) -> None:
    """Five services, each ready; a second 'up' keeps every process."""
    assert states(lab) == dict.fromkeys(NAMES, State.READY)
    before = leaders(lab)
    assert sorted(before) == sorted(NAMES)
    up(lab)
    assert leaders(lab) == before


@pytest.mark.parametrize("name", ["placement", "rabbitmq"])
def test_a_killed_service_is_healed(lab: Lab, name: str) -> None:
    """After SIGKILL the status says so, and 'up' starts that service alone, on its old port."""
    before = leaders(lab)
    os.kill(before[name], signal.SIGKILL)
    wait_for(lambda: states(lab)[name] is State.STOPPED)
    up(lab)
    after = leaders(lab)
    assert {service for service in after if after[service] != before[service]} == {name}
    assert states(lab)[name] is State.READY


def test_everything_listens_on_loopback_only(lab: Lab) -> None:
    """No socket of any process of the lab is reachable from the network."""
    listening = [address for process in processes.find(lab.directory) for address in listeners(process)]
    assert len(listening) >= len(NAMES)
    assert {address.rpartition(":")[0] for address in listening} <= {"127.0.0.1", "[::1]"}


def listeners(process: MarkedProcess) -> list[str]:
    output = subprocess.run(("/usr/bin/ss", "-Hltnp"), check=True, capture_output=True, text=True).stdout
    return [line.split()[3] for line in output.splitlines() if f"pid={process.pid}," in line]


async def test_the_service_user_reaches_placement_and_glance(lab: Lab) -> None:
    """By the catalog, with a token of the service project; without a token both refuse."""
    async with aiohttp.ClientSession() as session:
        identity = KeystoneIdentity(session, service_user(lab.cloud))
        for kind, path in (("placement", "/resource_providers"), ("image", "/v2/images")):
            client = ServiceClient(session, identity, name=kind, service_type=kind, settings=ServiceSection())
            assert (await client.request("GET", path, accepted={200})).status == 200
        for url in (f"{lab.placement_url}/resource_providers", f"{lab.glance_url}/v2/images"):
            async with session.get(url) as response:
                assert response.status == 401


async def test_a_wrong_password_is_refused(lab: Lab) -> None:
    """Keystone really checks."""
    wrong: AuthSection = service_user(lab.cloud).model_copy(update={"password": SecretStr("wrong")})
    async with aiohttp.ClientSession() as session:
        with pytest.raises((AuthenticationFailed, RequestRefused)):
            await KeystoneIdentity(session, wrong).token()


def test_the_broker_knows_its_user(lab: Lab) -> None:
    """The URL's user and password are those of the node; 'guest' does not exist."""
    state = json.loads((lab.directory / "lab.json").read_text())
    environment = {"PATH": os.environ["PATH"], **rabbitmq.node_environment(lab.directory, state["ports"])}
    tool = "/usr/lib/rabbitmq/bin/rabbitmqctl"
    for user, password, status in ((rabbitmq.USER, state["password"], 0), ("guest", "guest", 65)):
        asked = [tool, "--quiet", "authenticate_user", user, password]
        assert subprocess.run(asked, check=False, env=environment, capture_output=True).returncode == status


def test_a_second_command_waits_its_turn(lab: Lab) -> None:
    """Two 'up' at once in one directory are refused, before either could confuse the other."""

    async def both() -> list[BaseException | None]:
        calls = (Lab(lab.directory).up(hosts=0, agents=False) for _ in range(2))
        return await asyncio.gather(*calls, return_exceptions=True)

    done = asyncio.run(both())
    assert [type(error) for error in done if error is not None] == [LabError]


def test_status_and_logs_as_commands(lab: Lab) -> None:
    """All ready: status 0 and a row each; one away: 3. A log shows its end; an unknown name says which there are."""
    table = run(lab, "status")
    assert table.returncode == 0, table.stderr
    assert all(any(line.startswith(name) and "ready" in line for line in table.stdout.splitlines()) for name in NAMES)
    rows = json.loads(run(lab, "status", "--json").stdout)
    assert {row["name"]: row["pid"] for row in rows} == leaders(lab)
    assert "Serving on http://127.0.0.1" in run(lab, "logs", "-n", "200", "placement").stdout
    unknown = run(lab, "logs", "nova")
    assert unknown.returncode == 1
    assert "placement" in unknown.stderr
    os.kill(leaders(lab)["glance"], signal.SIGKILL)
    wait_for(lambda: "glance" not in leaders(lab))
    assert run(lab, "status").returncode == 3


def test_a_killed_up_is_continued_beside_another_lab_and_down_leaves_nothing(lab: Lab) -> None:
    """SIGKILL in the middle of 'up', then 'up' again: ready, on ports of its own. Its end is the end of no other."""
    other = new_lab()
    try:
        first = subprocess.Popen(
            command(other, "up", "--hosts", "0", "--cache", str(CACHE)),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_for(lambda: len(leaders(other)) >= 3 or first.poll() is not None)
        first.kill()
        assert first.wait() == -signal.SIGKILL
        begun = leaders(other)
        again = run(other, "up", "--hosts", "0")
        assert again.returncode == 0, again.stderr
        assert states(Lab(other.directory)) == dict.fromkeys(NAMES, State.READY)
        assert leaders(other).items() >= begun.items()

        mine = leaders(lab)
        ended = run(other, "down")
        assert ended.returncode == 0, ended.stderr
        assert all(name in ended.stdout for name in NAMES)
        assert processes.find(other.directory) == []
        assert mounts_below(other.directory) == ()
        assert run(other, "status").returncode == 3
        assert "Nothing ran" in run(other, "down").stdout
        assert leaders(lab) == mine

        assert run(other, "down", "--purge").returncode == 0
        assert list(other.directory.iterdir()) == []
    finally:
        remove(Lab(other.directory))


def test_down_ends_a_lab_whose_files_are_gone() -> None:
    """The mark of the processes is enough."""
    lab = new_lab()
    shutil.rmtree(lab.directory)
    environment = {**os.environ, "SEV_AGENT_LAB": str(lab.directory), "SEV_AGENT_LAB_SERVICE": "glance"}
    with subprocess.Popen(("/usr/bin/sleep", "60"), env=environment) as orphan:
        try:
            wait_for(lambda: processes.find(lab.directory))
            ended = run(lab, "down")
            assert "Ended 1 processes: glance" in ended.stdout
            assert orphan.wait(10) == -signal.SIGTERM
        finally:
            orphan.kill()
            remove(lab)
