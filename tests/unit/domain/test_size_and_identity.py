from uuid import UUID

import pytest

from sev_agent.domain import cpu, identity, launch_security, memory, metadata
from sev_agent.domain.spec import SevLaunch, SnpLaunch, VirtType
from sev_agent.sev.policy import SevPolicy, SnpPolicy
from tests.golden.cases import MINIMAL
from tests.unit.domain.configured import configured, texts


def test_vcpus() -> None:
    """The number of processors is the flavor's."""
    assert texts(configured(cpu.configure_count, vcpus=3)) == ['<vcpu placement="static">3</vcpu>']


@pytest.mark.parametrize(("virt_type", "mode"), [(VirtType.KVM, "host-passthrough"), (VirtType.QEMU, "maximum")])
def test_cpu_model(virt_type: VirtType, mode: str) -> None:
    """KVM passes the host's processor through; the emulator gives the most it has."""
    assert configured(cpu.configure_model, virt_type=virt_type)[0].get("mode") == mode


def test_memory() -> None:
    """All memory is there from the start, in MiB, and locked."""
    assert texts(configured(memory.configure, memory_mb=2048)) == [
        '<memory unit="MiB">2048</memory>',
        '<currentMemory unit="MiB">2048</currentMemory>',
        "<memoryBacking><locked/></memoryBacking>",
    ]


def test_snp_memory() -> None:
    """SEV-SNP's memory is not locked: its private pages are never swapped."""
    snp = SnpLaunch(policy=SnpPolicy.from_int(0x30000))

    assert configured(memory.configure, launch_security=snp).find("memoryBacking") is None


def test_memory_limit() -> None:
    """A limit is the most that QEMU may take and lock."""
    assert texts(configured(memory.configure, memory_mb=512, memory_limit_mb=768))[2] == (
        '<memtune><hard_limit unit="MiB">768</hard_limit></memtune>'
    )


def test_names() -> None:
    """The domain is found by its UUID under both of its names; the tenant's name is only its title."""
    uuid = UUID(int=7)
    name = identity.domain_name(uuid)

    assert texts(configured(identity.configure_names, uuid=uuid, name=name, title="a & b")) == [
        f"<name>instance-{uuid}</name>",
        f"<uuid>{uuid}</uuid>",
        "<title>a &amp; b</title>",
    ]


def test_smbios() -> None:
    """The guest finds its UUID as its system's UUID and serial number."""
    (sysinfo,) = configured(identity.configure_smbios)
    entries = {entry.get("name"): entry.text for entry in sysinfo.iterfind("system/entry")}

    assert entries["uuid"] == entries["serial"] == str(MINIMAL.uuid)


def test_metadata_is_one_element() -> None:
    """What the domain remembers is one element in our namespace, and reads back."""
    domain = configured(metadata.configure)

    assert len(domain) == 1
    assert [child.tag for child in domain[0]] == [f"{{{metadata.NAMESPACE}}}instance"]
    assert metadata.read(domain) == MINIMAL.metadata


@pytest.mark.parametrize(("policy", "text"), [(0x33, "0x0033"), (0x37, "0x0037"), (0x0100_0033, "0x1000033")])
def test_launch_security(policy: int, text: str) -> None:
    """The policy is written as a number, and nothing else is: libvirt finds the rest at start."""
    launch = SevLaunch(policy=SevPolicy.from_int(policy))

    assert texts(configured(launch_security.configure, launch_security=launch)) == [
        f'<launchSecurity type="sev"><policy>{text}</policy></launchSecurity>'
    ]
