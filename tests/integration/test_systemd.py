"""The unit and its companions, judged by systemd's own programs in a scratch root, and the daemon's part of the talk.

No systemd need run.
"""

import asyncio
import contextlib
import os
import re
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from sev_agent.cli.daemon import CONFIG_FAULT
from sev_agent.config import AgentConfig, ApiSection, BuildsSection, HostSection, SchedulerSection, variables
from sev_agent.hypervisor.event_loop import _STUCK_AFTER
from sev_agent.service import WATCHDOG_FRACTION
from tests.host_daemon import configured

SHIPPED = Path(__file__).parents[2] / "systemd"
UNIT = "sev-agent.service"
MAX_EXPOSURE = 20
"""In tenths, as systemd-analyze's threshold counts; it calls up to 4.4 "OK"."""

PATIENCE = 60.0
"""Seconds for what takes two on an idle machine."""

STOP_MARGIN = 60
"""Seconds that the connections and queues may take beside the builds; see TimeoutStopSec= in the unit."""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with the unit installed, and a program where it expects one."""
    units = tmp_path / "etc/systemd/system"
    units.mkdir(parents=True)
    shutil.copy(SHIPPED / UNIT, units)
    program = tmp_path / "opt/sev-agent/bin/sev-agent"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    return tmp_path


@pytest.fixture
def accounts(root: Path) -> Path:
    """The root after systemd-sysusers made the unit's user there."""
    (root / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\nlibvirt:x:106:\n")
    _run("systemd-sysusers", f"--root={root}", str(SHIPPED / "sev-agent.sysusers"))
    return root


def _run(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=60)


def _verify(root: Path, unit: str = UNIT) -> subprocess.CompletedProcess[str]:
    argv = ["systemd-analyze", "verify", f"--root={root}", "--man=no", "--recursive-errors=no", unit]
    return subprocess.run(argv, check=False, capture_output=True, text=True, timeout=60)


def _settings(name: str = UNIT) -> dict[str, dict[str, list[str]]]:
    """The unit's settings by section; each key may stand several times."""
    found: dict[str, dict[str, list[str]]] = {}
    section = ""
    for line in (SHIPPED / name).read_text().splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(section, {}).setdefault(key, []).append(value)
    return found


def _service(key: str) -> str:
    (value,) = _settings()["Service"][key]
    return value


class TestUnit:
    def test_is_clean(self, root: Path) -> None:
        """``systemd-analyze verify`` finds nothing to say."""
        result = _verify(root)
        assert (result.returncode, result.stdout, result.stderr) == (0, "", "")

    @pytest.mark.parametrize(
        ("line", "culprit"),
        [
            ("WatchdogSecs=30", "WatchdogSecs"),
            ("WatchdogSec=soon", "soon"),
            ("ExecStartPre=/opt/sev-agent/bin/absent", "absent"),
        ],
    )
    def test_verify_would_complain(self, root: Path, line: str, culprit: str) -> None:
        """The check can fail: an unknown key, a bad value and a missing program are found."""
        path = root / "etc/systemd/system" / UNIT
        path.write_text(path.read_text().replace("[Service]\n", f"[Service]\n{line}\n"))
        assert culprit in _verify(root).stderr

    def test_exposure_is_low(self, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """``systemd-analyze security`` puts the exposure below the bound; the level is printed."""
        options = ["--offline=yes", f"--root={root}", "--no-pager", f"--threshold={MAX_EXPOSURE}"]
        argv = ["systemd-analyze", "security", *options, UNIT]
        result = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=60)
        overall = re.search(r"Overall exposure level for sev-agent\.service: ([0-9.]+)", result.stdout)
        assert overall is not None, result.stderr
        with capsys.disabled():
            print(f" exposure level {overall[1]}, bound {MAX_EXPOSURE / 10:.1f}", end=" ")  # noqa: T201 - a figure to see
        assert result.returncode == 0
        assert float(overall[1]) <= MAX_EXPOSURE / 10


STOPS = {
    "sev-agent-scheduler": SchedulerSection(name="any").stop_timeout,
    "sev-agent-api": ApiSection().stop_timeout,
}
"""The services that need nothing of the host, and the seconds that their stop may take by their configuration."""


@pytest.mark.parametrize("name", STOPS)
class TestServices:
    def test_is_clean(self, root: Path, name: str) -> None:
        """``systemd-analyze verify`` finds nothing to say about the unit, and its stop has time enough."""
        unit = f"{name}.service"
        shutil.copy(SHIPPED / unit, root / "etc/systemd/system")
        result = _verify(root, unit)
        assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
        (stop,) = _settings(unit)["Service"]["TimeoutStopSec"]
        assert int(stop) >= STOPS[name] + STOP_MARGIN

    def test_exposure_is_low(self, root: Path, name: str) -> None:
        """``systemd-analyze security`` puts the exposure below the bound."""
        unit = f"{name}.service"
        shutil.copy(SHIPPED / unit, root / "etc/systemd/system")
        options = ["--offline=yes", f"--root={root}", "--no-pager", f"--threshold={MAX_EXPOSURE}"]
        argv = ["systemd-analyze", "security", *options, unit]
        result = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=60)
        assert result.returncode == 0, result.stdout

    def test_user_is_made(self, root: Path, name: str) -> None:
        """``systemd-sysusers`` makes the user that the unit names."""
        (root / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\n")
        (root / "etc/group").write_text("root:x:0:\n")
        _run("systemd-sysusers", f"--root={root}", str(SHIPPED / f"{name}.sysusers"))
        (user,) = _settings(f"{name}.service")["Service"]["User"]
        assert f"\n{user}:" in (root / "etc/passwd").read_text()


class TestAgreement:
    """What the unit says and what the daemon does are one."""

    def test_configuration_fault_is_not_retried(self) -> None:
        """The exit status of a bad configuration is the one after which systemd does not restart."""
        assert _service("RestartPreventExitStatus") == str(CONFIG_FAULT)

    def test_stop_is_longer_than_the_daemon_takes(self) -> None:
        """systemd waits for the builds under way and for the connections before it kills."""
        stop_timeout = BuildsSection().stop_timeout
        assert float(_service("TimeoutStopSec")) >= stop_timeout + STOP_MARGIN

    def test_watchdog_bears_a_late_event_thread(self) -> None:
        """A third of the watchdog's period is longer than the time after which libvirt's thread counts as stuck."""
        assert float(_service("WatchdogSec")) / WATCHDOG_FRACTION > _STUCK_AFTER

    def test_state_directory_is_the_default_one(self) -> None:
        """The directory that systemd makes and opens for writing is where the daemon keeps its state."""
        assert Path("/var/lib") / _service("StateDirectory") == HostSection(name="h").state_dir
        assert _service("StateDirectoryMode") == "0711", "QEMU's user must pass through it"

    def test_command_can_be_understood(self) -> None:
        """The command line is one that ``sev-agent`` has, with the file in the configuration directory."""
        program, *arguments = _service("ExecStart").split()
        assert Path(program).name == "sev-agent"
        assert arguments == ["run", "--config", f"/etc/{_service('ConfigurationDirectory')}/sev-agent.toml"]

    def test_documented_variables_are_settings(self) -> None:
        """The variables that its comments recommend exist."""
        named = set(re.findall(r"SEV_AGENT_[A-Z]+__[A-Z_]+", (SHIPPED / UNIT).read_text()))
        assert named
        assert named <= set(variables())

    def test_libvirt_is_reached_over_a_socket_family_that_is_allowed(self) -> None:
        """libvirt and systemd need Unix sockets, the services need the Internet's; nothing else is open."""
        assert set(_service("RestrictAddressFamilies").split()) == {"AF_UNIX", "AF_INET", "AF_INET6"}
        assert AgentConfig().hypervisor.uri == "qemu:///system"

    def test_guests_are_out_of_reach(self) -> None:
        """A stop signals the daemon, and kills only its own group; nothing binds its life to libvirt's."""
        assert _service("KillMode") == "mixed"
        assert not {"BindsTo", "Requires", "PartOf"} & set(_settings()["Unit"])


class TestAccounts:
    def test_user_is_a_member_of_libvirts_group(self, accounts: Path) -> None:
        """sysusers makes the user without a shell or a password, with the one group that polkit asks for."""
        users = _database(accounts / "etc/passwd")
        groups = _database(accounts / "etc/group")
        assert users[_service("User")][-1] == "/usr/sbin/nologin"
        assert _service("Group") in groups
        members = {name: fields[-1] for name, fields in groups.items()}
        assert members["libvirt"] == _service("User")
        assert [name for name, names in members.items() if names] == ["libvirt"]

    def test_configuration_is_closed_to_others(self, accounts: Path) -> None:
        """tmpfiles lets the daemon's group alone read the file, and nobody but root the environment."""
        directory = accounts / "etc/sev-agent"
        directory.mkdir()
        for name in ("sev-agent.toml", "environment"):
            (directory / name).write_text("")
            (directory / name).chmod(0o644)
        _run("systemd-tmpfiles", f"--root={accounts}", "--create", str(SHIPPED / "sev-agent.tmpfiles"))
        group = int(_database(accounts / "etc/group")["sev-agent"][2])
        config, environment = (directory / "sev-agent.toml").stat(), (directory / "environment").stat()
        assert (stat.S_IMODE(config.st_mode), config.st_uid, config.st_gid) == (0o640, 0, group)
        assert (stat.S_IMODE(environment.st_mode), environment.st_uid, environment.st_gid) == (0o600, 0, 0)

    def test_absent_configuration_is_no_error(self, accounts: Path) -> None:
        """On a machine without the files, tmpfiles has nothing to do and says nothing."""
        result = _run("systemd-tmpfiles", f"--root={accounts}", "--create", str(SHIPPED / "sev-agent.tmpfiles"))
        assert result.stderr == ""


class TestDaemon:
    async def test_is_ready_without_what_it_leans_on(self, tmp_path: Path) -> None:
        """With libvirt, the broker and Placement away a start succeeds, and the status line says what is missing."""
        async with _daemon(tmp_path) as (process, systemd):
            ready = await _until(systemd, "READY")
            assert ready["READY"] == "1"
            assert ready["STATUS"].startswith("not ready: libvirt: ")
            process.terminate()
            assert (await _until(systemd, "STOPPING"))["STOPPING"] == "1"
            assert await asyncio.wait_for(process.wait(), PATIENCE) == 0

    async def test_feeds_the_watchdog_during_an_outage(self, tmp_path: Path) -> None:
        """What is away is no death: the watchdog is fed all the same."""
        async with _daemon(tmp_path, {"WATCHDOG_USEC": "300000"}) as (_, systemd):
            for _ in range(4):
                assert (await _until(systemd, "WATCHDOG"))["WATCHDOG"] == "1"

    async def test_never_ready_with_a_bad_configuration(self, tmp_path: Path) -> None:
        """A configuration that cannot be used ends the daemon with the status that is not retried."""
        async with _daemon(tmp_path, {"SEV_AGENT_HTTP__PROT": "1"}) as (process, systemd):
            assert await asyncio.wait_for(process.wait(), PATIENCE) == CONFIG_FAULT
            assert systemd.empty()


Systemd = asyncio.Queue[dict[str, str]]
"""What the daemon told systemd: the variables of each datagram."""


@asynccontextmanager
async def _daemon(
    directory: Path, environment: Mapping[str, str] | None = None
) -> AsyncIterator[tuple[asyncio.subprocess.Process, Systemd]]:
    """``sev-agent run`` as systemd runs it, with nothing that it could connect to."""
    config = configured(directory / "sev-agent.toml", host="h", state_dir=directory / "state", log_format="auto")
    systemd: Systemd = asyncio.Queue()
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as channel:
        channel.bind(str(directory / "notify"))
        loop.add_reader(channel, lambda: systemd.put_nowait(_variables(channel.recv(65536))))
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "sev_agent", "run", "--config", str(config)),
            env={**os.environ, "NOTIFY_SOCKET": str(directory / "notify"), **(environment or {})},
        )
        try:
            async with asyncio.timeout(PATIENCE * 2):
                yield process, systemd
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            loop.remove_reader(channel)


def _variables(datagram: bytes) -> dict[str, str]:
    return dict(line.split("=", 1) for line in datagram.decode().splitlines())


async def _until(systemd: Systemd, variable: str) -> dict[str, str]:
    while variable not in (told := await systemd.get()):
        pass
    return told


def _database(path: Path) -> dict[str, list[str]]:
    return {line.partition(":")[0]: line.split(":") for line in path.read_text().splitlines()}
