"""The Debian packages that a build and a lab need, and their installation.

Standard library only, also in what it imports: it runs on a bare machine, before there is any environment.

    python3 -m sev_agent.lab.packages [--for build|lab|tests|all]
"""

import argparse
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO, TypeAlias

from sev_agent.lab import apt_source
from sev_agent.lab.service import LabError

Say: TypeAlias = Callable[[str], None]

APT = Path("/etc/apt")
POLICY = Path("/usr/sbin/policy-rc.d")
_LOCK = Path("/run/lock/sev-agent-packages.lock")
_OS_RELEASE = Path("/etc/os-release")

_POLICY_MARK = "# sev-agent lab: no service starts while it installs packages"
_POLICY_TEXT = f"#!/bin/sh\n{_POLICY_MARK}\nexit 101\n"

_INSTALL_TIMEOUT = 1800
_QUERY_TIMEOUT = 60
_LOCK_INTERVAL = 0.2
_MAX_HOLDER = 20
_KEPT_LINES = 20
# All parts of these source packages move together, also those that are installed already: they depend on each other's
# very version. Everything else stays as the distribution has it, which apt-get's own --target-release would not do.
_PINS = """\
Package: src:libvirt src:qemu src:seabios
Pin: release n={codename}-backports
Pin-Priority: 990
"""

_NETWORK_UNITS = ("rabbitmq-server.service", "epmd.socket")
"""Units that would listen on the network from the next start of the machine on, as their packages enable them."""


@dataclass(frozen=True, slots=True)
class Package:
    """A package, and the least version that will do (Debian's, without a revision)."""

    name: str
    least: str = "0"


_LIBVIRT = "10.5"
_QEMU = "1:9.1"

BUILD = (Package("gcc"), Package("libc6-dev"), Package("pkg-config"), Package("libvirt-dev"))
DEBIANS_PYTHON = (Package("python3-dev"), Package("python3-venv"))
LAB = (
    Package("libvirt-daemon", _LIBVIRT),
    Package("libvirt-daemon-driver-qemu", _LIBVIRT),
    Package("libvirt-daemon-log", _LIBVIRT),
    Package("libvirt-clients", _LIBVIRT),
    Package("qemu-system-x86", _QEMU),
    Package("qemu-utils", _QEMU),
    Package("ovmf"),
    Package("rabbitmq-server"),
    # The hosts' namespaces, and the library that answers for a missing CAP_SYS_RESOURCE.
    *(Package(name) for name in ("util-linux", "mount", "hostname", "tini", "gcc", "libc6-dev")),
    # The guest image. What goes into it is downloaded, not installed: busybox-static would drive out busybox.
    *(Package(name) for name in ("binutils", "mtools")),
    # The check of domains against libvirt's schema; the look at what listens.
    *(Package(name) for name in ("libxml2-utils", "iproute2")),
)


TESTS = (*LAB, *(Package(name) for name in ("systemd", "cpio", "grub-common", "postgresql", "chromium")))
"""What the tests need: the lab's, what checks units, users, archives, boot lines and pages, and the API's database."""


class PackagesError(LabError):
    """The system packages are not there and cannot be installed."""

    code = "lab.packages"


def needed(purpose: str) -> tuple[Package, ...]:
    """The packages for ``build``, ``lab``, ``tests`` or ``all``."""
    python = DEBIANS_PYTHON if sys.base_prefix == "/usr" else ()
    match purpose:
        case "build":
            return (*BUILD, *python)
        case "lab":
            # The lab makes a virtual environment, which Debian's Python cannot do by itself.
            return (*LAB, *python)
        case "tests":
            return (*TESTS, *python)
        case _:
            return (*BUILD, *python, *TESTS)


def missing(packages: Sequence[Package]) -> list[Package]:
    """Those that are not installed, or too old. Blocks for some 20 ms. Raises ``PackagesError`` without dpkg."""
    if shutil.which("dpkg-query") is None:
        raise _unsupported(packages)
    installed = _installed()
    return [
        package
        for package in dict.fromkeys(packages)
        if package.name not in installed or not _new_enough(installed[package.name], package.least)
    ]


def install(purpose: str = "all", *, say: Say) -> list[str]:
    """Install what is missing for ``purpose``, without starting any service; the names of what was missing.

    ``say`` hears beforehand of everything that changes the machine. Raises ``PackagesError``. Blocks, for minutes
    where there is much to install.
    """
    absent = missing(needed(purpose))
    if not absent:
        return []
    codename = _codename(absent)
    if os.geteuid() != 0:
        raise PackagesError(
            f"these packages are missing: {_names(absent)}", remedy="run this as root, or install them by hand"
        )
    with _alone(_LOCK, say), _no_services_start(POLICY):
        if codename == "bookworm":
            _add_backports(APT, codename, say)
        say(f"installing with apt-get: {_names(absent)}")
        _run(["apt-get", "update", "--quiet"])
        with _preferences(APT, codename) as pins:
            _run(["apt-get", "install", *_OPTIONS, *pins, *sorted({package.name for package in absent})])
    _disable_network_units(absent)
    if still := missing(absent):
        raise PackagesError(
            f"the machine's package sources have no new enough version of: {_names(still)}",
            remedy=f"libvirt >= {_LIBVIRT} and QEMU >= {_QEMU.partition(':')[2]} are needed",
        )
    return [package.name for package in absent]


_OPTIONS = (
    *("--yes", "--quiet", "--no-install-recommends"),
    # Rather fail than take something away from the machine.
    "--no-remove",
    *("-o", "DPkg::Lock::Timeout=600", "-o", "Dpkg::Options::=--force-confold"),
)


def _installed() -> dict[str, str]:
    """The version of every installed package."""
    form = "${Package}\t${Version}\t${db:Status-Status}\n"
    rows = (line.split("\t") for line in _output(["dpkg-query", "--show", f"--showformat={form}"]).splitlines())
    return {name: version for name, version, state in rows if state == "installed"}


def _new_enough(version: str, least: str) -> bool:
    if least == "0":
        return True
    command = ("dpkg", "--compare-versions", version, "ge", least)
    return subprocess.run(command, check=False, timeout=_QUERY_TIMEOUT).returncode == 0


@contextmanager
def _preferences(apt: Path, codename: str) -> Iterator[tuple[str, ...]]:
    """Options that make apt-get take libvirt and QEMU from backports where the distribution's own are too old."""
    if codename != "bookworm":
        yield ()
        return
    with tempfile.NamedTemporaryFile("w", prefix="sev-agent-", suffix=".pref") as file:
        # The option takes the place of this file, so what an administrator wrote there must go along.
        with suppress(FileNotFoundError):
            file.write((apt / "preferences").read_text().rstrip() + "\n\n")
        file.write(_PINS.format(codename=codename))
        file.flush()
        # apt-get reads it as a user of its own.
        os.fchmod(file.fileno(), 0o644)
        yield ("-o", f"Dir::Etc::Preferences={file.name}")


def _add_backports(apt: Path, codename: str, say: Say) -> None:
    suite = f"{codename}-backports"
    if apt_source.has_suite(apt, suite):
        return
    source = apt_source.derive(apt, codename)
    if source is None:
        raise PackagesError(
            f"no package source of this machine offers '{codename} main', so none for {suite} can be derived",
            remedy=f"add a source for {suite} below {apt}",
        )
    path = apt / "sources.list.d" / source.name
    say(f"adding the package source {path}:\n{source.text}")
    path.parent.mkdir(exist_ok=True)
    new = path.with_name(f".{path.name}.new")
    new.write_text(source.text)
    new.replace(path)
    try:
        # Of this source alone: what is wrong with others must not make it look unusable.
        only = ("-o", f"Dir::Etc::sourcelist={path}", "-o", "Dir::Etc::sourceparts=-", "-o", "APT::Get::List-Cleanup=0")
        _run(["apt-get", "update", "--quiet", "--error-on=any", *only])
    except PackagesError:
        path.unlink()
        raise


@contextmanager
def _no_services_start(policy: Path) -> Iterator[None]:
    """Have no package start its service; the one policy of the machine, if it has one, stays and rules.

    A policy that an earlier run left when it was killed is taken over, and removed at the end.
    """
    try:
        ours = _POLICY_MARK in policy.read_text(errors="replace")
    except FileNotFoundError:
        with policy.open("x") as file:
            file.write(_POLICY_TEXT)
        ours = True
    if ours:
        policy.chmod(0o755)
    try:
        yield
    finally:
        if ours:
            policy.unlink(missing_ok=True)


@contextmanager
def _alone(lock: Path, say: Say, *, patience: float = _INSTALL_TIMEOUT) -> Iterator[None]:
    """Wait until no other lab installs: the first to end would remove the policy under the second.

    Raises ``PackagesError`` that names the other one where it takes longer than ``patience`` seconds.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a+") as file:
        deadline, told = time.monotonic() + patience, False
        while not _taken(file):
            file.seek(0)
            holder = file.read(_MAX_HOLDER).strip() or "of unknown number"
            if time.monotonic() > deadline:
                raise PackagesError(
                    f"process {holder} has been installing packages for a lab for {patience:g} s, and holds {lock}",
                    remedy="wait for it, or end it if it hangs, then try again",
                )
            if not told:
                say(f"waiting for process {holder}, which installs packages for another lab")
                told = True
            time.sleep(_LOCK_INTERVAL)
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def _taken(file: TextIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _disable_network_units(installed: Sequence[Package]) -> None:
    """A lab runs a broker of its own; the package's would open the machine to the network at its next start."""
    if Path("/run/systemd/system").is_dir() and any(package.name == "rabbitmq-server" for package in installed):
        command = ("systemctl", "disable", "--quiet", *_NETWORK_UNITS)
        subprocess.run(command, check=False, timeout=_QUERY_TIMEOUT)


def _codename(absent: Sequence[Package]) -> str:
    release = _os_release(_OS_RELEASE)
    match release.get("ID"), release.get("VERSION_ID"):
        case "debian", "12":
            return "bookworm"
        case "debian", "13":
            return "trixie"
        case _:
            raise _unsupported(absent)


def _os_release(path: Path) -> Mapping[str, str]:
    try:
        lines = path.read_text().splitlines()
    except FileNotFoundError:
        return {}
    pairs = (line.partition("=") for line in lines if "=" in line)
    return {name: value.strip().strip("\"'") for name, _, value in pairs}


def _unsupported(absent: Sequence[Package]) -> PackagesError:
    system = _os_release(_OS_RELEASE).get("PRETTY_NAME", "this system")
    return PackagesError(
        f"packages are installed on Debian 12 and 13 only, and this is {system}. Missing, by Debian's names: "
        f"{_names(absent)}",
        remedy="install them by hand",
    )


def _names(packages: Sequence[Package]) -> str:
    return ", ".join(p.name if p.least == "0" else f"{p.name} (>= {p.least.rpartition(':')[2]})" for p in packages)


def _output(command: Sequence[str]) -> str:
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=_QUERY_TIMEOUT)
    return done.stdout


def _run(command: Sequence[str]) -> None:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
    done = subprocess.run(
        command,
        check=False,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=environment,
        timeout=_INSTALL_TIMEOUT,
    )
    if done.returncode != 0:
        tail = "".join(f"\n  {line}" for line in done.stdout.splitlines()[-_KEPT_LINES:])
        raise PackagesError(f"'{' '.join(command)}' failed with status {done.returncode}:{tail}\n")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python3 -m sev_agent.lab.packages", description="Install system packages.")
    parser.add_argument("--for", dest="purpose", choices=("build", "lab", "tests", "all"), default="all")
    purpose = parser.parse_args().purpose
    try:
        done = install(purpose, say=_print)
    except LabError as error:
        sys.exit(f"sev-agent: {error}")
    _print(f"installed: {', '.join(done)}" if done else "every system package that is needed is there")


def _print(text: str) -> None:
    width = shutil.get_terminal_size().columns
    for line in text.splitlines():
        wrapped = textwrap.fill(line, width, break_long_words=False, break_on_hyphens=False)
        print(wrapped, flush=True)  # noqa: T201 - a command's output


if __name__ == "__main__":
    main()
