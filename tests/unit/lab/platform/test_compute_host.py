import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sev_agent.hypervisor.platform import read_platform
from sev_agent.lab.host import Host
from sev_agent.lab.platform import emulator
from sev_agent.lab.platform.compute_host import ComputeHost
from sev_agent.lab.platform.emulator.kind import Kind
from sev_agent.lab.service import LabError
from sev_agent.sev.generation import Generation


async def test_shows_a_sev_platform(tmp_path: Path) -> None:
    """A prepared host's root reads as a SEV host's, says that it is simulated, and all slots are free."""
    host: Host = ComputeHost(name="node1", directory=tmp_path, slots=3)
    await host.prepare()
    platform = read_platform(host.platform_root)
    assert (platform.sev, platform.sev_es, platform.sev_snp, platform.simulated) == (True, False, False, True)
    assert (platform.misc_capacity["sev"], platform.misc_current["sev"]) == (3, 0)


@pytest.mark.parametrize(
    ("kind", "parameters", "capacity"),
    [
        (Kind.NONE, (False, False, False), {"sev": 0, "sev_es": 0}),
        (Kind.SEV, (True, False, False), {"sev": 3, "sev_es": 0}),
        (Kind.SEV_ES, (True, True, False), {"sev": 3, "sev_es": 3}),
        (Kind.SEV_SNP, (True, True, True), {"sev": 3, "sev_es": 3}),
    ],
)
async def test_each_kind_shows_its_generations(
    tmp_path: Path, kind: Kind, parameters: tuple[bool, ...], capacity: dict[str, int]
) -> None:
    """The kernel's parameters and counters of a host are those of its kind; without SEV there is no device either."""
    host = ComputeHost(name="node1", directory=tmp_path, slots=3, kind=kind)
    await host.prepare()
    platform = read_platform(host.platform_root)
    assert (platform.sev, platform.sev_es, platform.sev_snp) == parameters
    assert platform.misc_capacity == capacity
    assert (host.platform_root / "dev/sev").exists() == (kind is not Kind.NONE)


@pytest.mark.parametrize(("kind", "generation"), [(Kind.SEV_ES, Generation.SEV_ES), (Kind.SEV_SNP, Generation.SEV_SNP)])
def test_a_host_has_firmware_for_its_generation(tmp_path: Path, kind: Kind, generation: Generation) -> None:
    """Beside the distribution's descriptors lies one with the feature that theirs lack, whose files are there."""
    host = ComputeHost(name="node1", directory=tmp_path, kind=kind)
    asyncio.run(host.prepare())
    (path,) = host.firmware_descriptors.glob("*.json")
    described = json.loads(path.read_text())
    mapping = described["mapping"]
    assert generation.value in described["features"]
    assert Path(mapping.get("filename") or mapping["executable"]["filename"]).is_file()


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
