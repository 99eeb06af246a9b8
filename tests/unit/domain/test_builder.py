from dataclasses import replace
from pathlib import Path

import pytest
from lxml import etree

from sev_agent.domain import launch_security, metadata
from sev_agent.domain.builder import build_domain
from sev_agent.domain.spec import DomainSpec
from sev_agent.domain.xml import parse_domain
from sev_agent.sev.generation import Generation
from tests.golden.cases import CASES, DIRECTORY, MINIMAL

all_cases = pytest.mark.parametrize("name", CASES)


def _virtio_devices(domain: "etree._Element") -> "list[etree._Element]":
    """Every device of ``domain`` that libvirt makes a virtio device of, as its documentation names them."""
    by_path = (
        "devices/disk[target/@bus='virtio']",
        "devices/controller[@model='virtio-scsi']",
        "devices/controller[@type='virtio-serial']",
        "devices/interface[model/@type='virtio']",
        "devices/rng[@model='virtio']",
        "devices/memballoon[@model='virtio']",
        "devices/video[model/@type='virtio']",
        "devices/input[@bus='virtio']",
        "devices/filesystem",
        "devices/vsock",
    )
    found = []
    for path in by_path:
        elements = domain.xpath(path)
        assert isinstance(elements, list)
        found += [element for element in elements if isinstance(element, etree._Element)]
    return found


@all_cases
def test_golden(name: str, request: pytest.FixtureRequest) -> None:
    """A domain is, byte for byte, what its golden file says."""
    path = DIRECTORY / f"{name}.xml"
    xml = build_domain(CASES[name]).encode()
    if request.config.getoption("--update-golden"):
        path.write_bytes(xml)
    assert xml == path.read_bytes()


def test_no_golden_file_is_left_over() -> None:
    """Every golden file belongs to a case."""
    assert {path.stem for path in DIRECTORY.glob("*.xml")} == set(CASES)


@all_cases
def test_iommu_on_every_virtio_device(name: str) -> None:
    """Every virtio device, whatever its kind, has iommu='on'."""
    devices = _virtio_devices(etree.fromstring(build_domain(CASES[name])))

    assert len(devices) >= 1
    for device in devices:
        driver = device.find("driver")
        assert driver is not None, device.tag
        assert driver.get("iommu") == "on", device.tag


@all_cases
def test_what_must_and_must_not_be_there(name: str) -> None:
    """Launch security is there, and locked memory but for SEV-SNP; vmcoreinfo, a balloon, USB and a display are not."""
    domain = etree.fromstring(build_domain(CASES[name]))
    is_snp = CASES[name].launch_security.generation is Generation.SEV_SNP

    assert (domain.find("memoryBacking/locked") is None) is is_snp
    assert domain.find(f"launchSecurity[@type='{'sev-snp' if is_snp else 'sev'}']/policy") is not None
    assert domain.find("features/vmcoreinfo") is None
    assert [element.get("model") for element in domain.findall("devices/memballoon")] == ["none"]
    assert [element.get("model") for element in domain.findall("devices/controller[@type='usb']")] == ["none"]
    assert domain.find("devices/graphics") is None


@all_cases
def test_reads_back_what_it_wrote(name: str) -> None:
    """A domain built here is known again: its instance and its generation."""
    xml = build_domain(CASES[name])

    assert metadata.read(parse_domain(xml)) == CASES[name].metadata
    assert launch_security.read(parse_domain(xml)) is CASES[name].launch_security.generation


def test_paths_are_escaped() -> None:
    """A path with XML's own characters stays that path."""
    path = Path("/srv/a<b>&'c\"/disk")
    spec: DomainSpec = replace(MINIMAL, disk=replace(MINIMAL.disk, path=path))

    source = etree.fromstring(build_domain(spec)).find("devices/disk[@device='disk']/source")

    assert source is not None
    assert source.get("file") == str(path)
