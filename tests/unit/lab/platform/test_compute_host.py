import os
import subprocess
import sys
from pathlib import Path

import pytest

from sev_agent.hypervisor.platform import read_platform
from sev_agent.lab.host import Host
from sev_agent.lab.platform import emulator
from sev_agent.lab.platform.compute_host import ComputeHost
from sev_agent.lab.service import LabError


async def test_shows_a_sev_platform(tmp_path: Path) -> None:
    """A prepared host's root reads as a SEV host's, says that it is simulated, and all slots are free."""
    host: Host = ComputeHost(name="node1", directory=tmp_path, slots=3)
    await host.prepare()
    platform = read_platform(host.platform_root)
    assert (platform.sev, platform.sev_es, platform.sev_snp, platform.simulated) == (True, False, False, True)
    assert (platform.misc_capacity["sev"], platform.misc_current["sev"]) == (3, 0)


async def test_a_host_without_slots_shows_no_sev(tmp_path: Path) -> None:
    """A host with no slot is an ordinary host."""
    host = ComputeHost(name="node1", directory=tmp_path, slots=0)
    await host.prepare()
    assert not read_platform(host.platform_root).sev


async def test_preparing_again_counts_running_guests(tmp_path: Path) -> None:
    """A second preparation leaves what is in use as it is."""
    host = ComputeHost(name="node1", directory=tmp_path, slots=3)
    await host.prepare()
    descriptor, _ = host.firmware_slots.take("sev", {})
    await host.prepare()
    assert read_platform(host.platform_root).misc_current["sev"] == 1
    os.close(descriptor)


async def test_preparing_again_replaces_nothing(tmp_path: Path) -> None:
    """Files that are bound into the namespaces stay the same files."""
    host = ComputeHost(name="node1", directory=tmp_path)
    await host.prepare()
    bound = [tmp_path / "bin/qemu-system-x86_64", tmp_path / "etc/hosts"]
    before = [path.stat().st_ino for path in bound]
    await host.prepare()
    assert [path.stat().st_ino for path in bound] == before


async def test_refuses_a_directory_too_deep_for_sockets(tmp_path: Path) -> None:
    """A path that no socket's address can hold is refused before anything is written."""
    host = ComputeHost(name="node1", directory=tmp_path / ("d" * 100))
    with pytest.raises(LabError, match="too deep"):
        await host.prepare()
    assert not host.directory.exists()


def test_the_shim_needs_only_the_standard_library() -> None:
    """The emulator package runs without this project and without any site directory."""
    directory = str(Path(emulator.__file__).parent.parent)
    program = "import sys; sys.path.insert(0, sys.argv[1]); import emulator.shim"
    subprocess.run([sys.executable, "-I", "-S", "-c", program, directory], check=True)
