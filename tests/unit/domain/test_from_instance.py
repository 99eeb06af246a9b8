import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st
from lxml import etree
from pydantic import ValidationError

from sev_agent.domain import metadata
from sev_agent.domain.builder import build_domain
from sev_agent.domain.firmware import FirmwareChoice, FlashBuild, MemoryBuild
from sev_agent.domain.from_instance import GuestFiles, HostPlatform, domain_spec
from sev_agent.domain.spec import (
    DiskFormat,
    DomainSpec,
    KernelBoot,
    Rom,
    SnpLaunch,
    SplitFlash,
    StatelessFlash,
    VirtType,
)
from sev_agent.domain.xml import parse_domain
from sev_agent.schema import Instance, NetworkKind, derived_mac
from sev_agent.sev.generation import Generation
from sev_agent.sev.image_properties import CdromBus, DiskBus, ImageProperties, KernelImages
from sev_agent.sev.policy import SnpPolicy, default_policy
from sev_agent.sev.rules import EncryptionRequest

UUID_TEXT = "6b2e1f0a-0f55-4f2e-9c3c-5f6f1a0d7a01"
FIRMWARE = FirmwareChoice(
    descriptor=Path("/usr/share/qemu/firmware/60.json"),
    build=FlashBuild(
        code=Path("/fw/CODE.fd"),
        code_format=DiskFormat.RAW,
        nvram_template=Path("/fw/VARS.fd"),
        nvram_format=DiskFormat.QCOW2,
    ),
    candidates=(),
)
ROM = replace(FIRMWARE, build=MemoryBuild(code=Path("/fw/AMDSEV.fd")))
FILES = GuestFiles(
    disk=Path("/i/disk.qcow2"),
    config_drive=Path("/i/config.iso"),
    nvram=Path("/i/nvram.fd"),
    console_log=Path("/i/console.log"),
)
PLATFORM = HostPlatform(virt_type=VirtType.QEMU, emulator=Path("/usr/bin/qemu"), creator="sev-agent 9")


def request(**changes: Any) -> dict[str, Any]:
    """A request for an instance, as it comes in a message, with ``changes``."""
    return {
        "uuid": UUID_TEXT,
        "name": "web",
        "project_id": "p",
        "user_id": "u",
        "flavor": {"name": "f", "vcpus": 2, "memory_mb": 1024, "root_gb": 1},
        "image": {"id": "0d9e4c2e-6a0b-4f6d-8a52-1d4f3f2b9c10"},
    } | changes


def spec_of(
    arguments: dict[str, Any],
    image: ImageProperties | None = None,
    generation: Generation = Generation.SEV,
    *,
    firmware: FirmwareChoice = FIRMWARE,
    files: GuestFiles | None = None,
) -> DomainSpec:
    return domain_spec(
        Instance.model_validate(arguments),
        image=image or ImageProperties(),
        encryption=EncryptionRequest(generation, default_policy(generation)),
        files=files or FILES,
        firmware=firmware,
        firmware_sha256="ab",
        platform=PLATFORM,
    )


def test_everything_arrives() -> None:
    """What the request, the image, the host and the firmware say is what the domain is to be."""
    image = ImageProperties(machine_type="pc-q35-9.2", disk_bus=DiskBus.VIRTIO, cdrom_bus=CdromBus.SATA)

    spec = spec_of(request(), image)

    assert spec.name == f"instance-{UUID_TEXT}"
    assert (spec.uuid, spec.title) == (UUID(UUID_TEXT), "web")
    assert (spec.vcpus, spec.memory_mb, spec.machine) == (2, 1024, "pc-q35-9.2")
    assert (spec.disk.path, spec.disk.format, spec.disk.bus) == (FILES.disk, DiskFormat.QCOW2, DiskBus.VIRTIO)
    assert (spec.config_drive.path, spec.config_drive.bus) == (FILES.config_drive, CdromBus.SATA)
    assert spec.firmware == SplitFlash(
        code=Path("/fw/CODE.fd"),
        nvram=FILES.nvram,
        nvram_template=Path("/fw/VARS.fd"),
        nvram_format=DiskFormat.QCOW2,
    )
    assert (spec.virt_type, spec.emulator, spec.console_log) == (VirtType.QEMU, PLATFORM.emulator, FILES.console_log)
    assert int(spec.launch_security.policy) == 0x33
    assert (spec.metadata.creator, spec.metadata.firmware_sha256) == ("sev-agent 9", "ab")
    assert spec.metadata.generation is Generation.SEV


def test_es() -> None:
    """A SEV-ES request becomes a SEV launch whose policy says ES."""
    assert spec_of(request(), generation=Generation.SEV_ES).launch_security.generation is Generation.SEV_ES


def test_snp() -> None:
    """A SEV-SNP request becomes a SEV-SNP launch with the image's options, from firmware mapped as memory."""
    spec = spec_of(request(), generation=Generation.SEV_SNP, firmware=ROM)

    assert spec.launch_security == SnpLaunch(policy=SnpPolicy.from_int(0x30000))
    assert spec.firmware == Rom(code=Path("/fw/AMDSEV.fd"))


def test_stateless() -> None:
    """Firmware without a template of variables is flash that nobody writes."""
    firmware = replace(FIRMWARE, build=FlashBuild(code=Path("/c"), code_format=DiskFormat.RAW))

    assert spec_of(request(), firmware=firmware).firmware == StatelessFlash(code=Path("/c"))


def test_kernel() -> None:
    """The image's kernel boots from the guest's own files, with the image's command line."""
    image = ImageProperties(kernel=KernelImages(kernel=UUID(int=1), ramdisk=UUID(int=2), command_line="quiet"))
    files = replace(FILES, kernel=Path("/i/kernel"), ramdisk=Path("/i/ramdisk"))

    boot = KernelBoot(kernel=Path("/i/kernel"), ramdisk=Path("/i/ramdisk"), command_line="quiet")
    assert spec_of(request(), image, files=files).kernel == boot
    assert spec_of(request()).kernel is None


def test_nics() -> None:
    """NICs keep their order and their MACs; type none is no NIC; a MAC not given is derived."""
    networks = [
        {"type": "none"},
        {"type": "user"},
        {"type": "bridge", "source": "br0", "mac": "52:54:00:00:00:01"},
        {"type": "network", "source": "default"},
    ]

    user, bridge, network = spec_of(request(networks=networks)).nics

    assert (user.kind, user.mac) == (NetworkKind.USER, derived_mac(UUID(UUID_TEXT), 1))
    assert (bridge.kind, bridge.source, bridge.mac) == (NetworkKind.BRIDGE, "br0", "52:54:00:00:00:01")
    assert (network.kind, network.source) == (NetworkKind.NETWORK, "default")
    assert network.mac != user.mac


@given(st.uuids(), st.integers(0, 7))
def test_derived_mac(uuid: UUID, index: int) -> None:
    """A derived MAC is always the same, under OpenStack's prefix, and differs between the NICs of a guest."""
    mac = derived_mac(uuid, index)

    assert re.fullmatch(r"fa:16:3e(:[0-9a-f]{2}){3}", mac)
    assert mac == derived_mac(uuid, index)
    assert mac != derived_mac(uuid, index + 8)


_NAME = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9 ._:@+-]{0,40}[A-Za-z0-9._:@+-])?", fullmatch=True)
_networks = st.lists(
    st.one_of(
        st.just({"type": "user"}),
        st.just({"type": "none"}),
        st.builds(
            lambda kind, source: {"type": kind, "source": source},
            st.sampled_from(["bridge", "network"]),
            st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True),
        ),
    ),
    max_size=8,
)
_requests = st.builds(
    request,
    uuid=st.uuids().map(str),
    name=_NAME,
    project_id=st.text(max_size=40),
    user_id=st.text(max_size=40),
    flavor=st.builds(
        lambda name, vcpus, memory: {"name": name, "vcpus": vcpus, "memory_mb": memory, "root_gb": 1},
        st.text(max_size=40),
        st.integers(1, 255),
        st.integers(64, 2**24),
    ),
    networks=_networks,
)


@given(_requests)
def test_any_instance(arguments: dict[str, Any]) -> None:
    """Any allowed instance builds well-formed XML that gives every text and size back, or is refused for its text."""
    try:
        spec = spec_of(arguments)
    except ValidationError:
        texts = arguments["project_id"] + arguments["user_id"] + arguments["flavor"]["name"]
        assert re.search("[\x7f-\x9f\u2028\u2029]|[^\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", texts)
        return
    xml = build_domain(spec)

    domain = etree.fromstring(xml)
    assert metadata.read(parse_domain(xml)) == spec.metadata
    assert domain.findtext("title") == arguments["name"]
    assert domain.findtext("uuid") == arguments["uuid"]
    assert domain.findtext("vcpu") == str(arguments["flavor"]["vcpus"])
    assert domain.findtext("memory") == str(arguments["flavor"]["memory_mb"])
    kinds = [network["type"] for network in arguments["networks"] if network["type"] != "none"]
    assert [nic.get("type") for nic in domain.findall("devices/interface")] == kinds


def test_every_character_of_a_name() -> None:
    """A name of all characters that a name may have is the title, as it is."""
    name = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789 ._:@+-"

    domain = etree.fromstring(build_domain(spec_of(request(name=name))))

    assert domain.findtext("title") == name
