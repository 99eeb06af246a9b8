"""Libvirt's own word on the golden domains: its RNG schema, and a definition with the VALIDATE flag."""

import subprocess
from pathlib import Path

import pytest
from lxml import etree

from sev_agent.domain import launch_security, metadata
from sev_agent.domain.xml import parse_domain
from tests.golden.cases import CASES, DIRECTORY

PATIENCE = 60

KEPT = (
    "memoryBacking",
    "launchSecurity/policy",
    "launchSecurity/idBlock",
    "launchSecurity/idAuth",
    "launchSecurity/hostData",
    "launchSecurity/guestVisibleWorkarounds",
    "os/loader",
    "os/kernel",
    "os/initrd",
    "os/cmdline",
    "memtune/hard_limit",
)
"""What libvirt must keep as it was; numbers and base64 it may write anew."""


def texts(element: "etree._Element | None") -> list[str] | None:
    """Tags and texts of ``element``, numbers and base64 by what they mean; ``None`` for none."""
    if element is None:
        return None
    return [f"{found.tag} {meaning(found)}" for found in element.iter()]


def meaning(element: "etree._Element") -> object:
    text = "".join((element.text or "").split())
    if element.tag == "policy":
        return int(text, 0)
    return int(text) * {"MiB": 1024, "KiB": 1}[element.get("unit", "KiB")] if element.tag == "hard_limit" else text


all_cases = pytest.mark.parametrize("name", CASES)


def validate(path: Path) -> "subprocess.CompletedProcess[str]":
    """Libvirt's RNG schema on the file at ``path``."""
    return subprocess.run(
        ["/usr/bin/virt-xml-validate", path, "domain"], capture_output=True, text=True, check=False, timeout=PATIENCE
    )


def define(path: Path, domain: str) -> "subprocess.CompletedProcess[str]":
    """Define the file at ``path`` on libvirt's test driver, and show what libvirt made of it."""
    script = f"define --validate '{path}'; dumpxml '{domain}'"
    return subprocess.run(
        ["/usr/bin/virsh", "--quiet", "--connect", "test:///default", script],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )


@all_cases
def test_schema(name: str) -> None:
    """Libvirt's schema accepts every golden domain."""
    result = validate(DIRECTORY / f"{name}.xml")

    assert result.returncode == 0, result.stderr


@all_cases
def test_definition(name: str) -> None:
    """Libvirt defines every golden domain, and keeps its identity, encryption, memory lock and iommu settings."""
    spec = CASES[name]
    result = define(DIRECTORY / f"{name}.xml", spec.name)
    assert result.returncode == 0, result.stderr

    kept = result.stdout.strip()
    domain = etree.fromstring(kept)

    assert metadata.read(parse_domain(kept)) == spec.metadata
    assert launch_security.read(parse_domain(kept)) is spec.launch_security.generation
    assert domain.findtext("title") == spec.title
    ours = etree.parse(DIRECTORY / f"{name}.xml")
    for path in KEPT:
        assert texts(domain.find(path)) == texts(ours.find(path)), path
    for tag in ("disk", "controller", "interface", "rng"):
        drivers = f"count(devices/{tag}/driver[@iommu='on'])"
        assert domain.xpath(drivers) == ours.xpath(drivers), tag


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("<locked/>", "<locket/>"),
        ('iommu="on"', 'iommu="maybe"'),
        ("<policy>0x0033</policy>", ""),
        ('model="virtio-scsi"', 'model="virtio-scuzzy"'),
    ],
)
def test_both_refuse_what_is_wrong(tmp_path: Path, old: str, new: str) -> None:
    """A slip in any element is found by the schema and by the definition."""
    golden = (DIRECTORY / "minimal.xml").read_text()
    assert old in golden
    wrong = tmp_path / "wrong.xml"
    wrong.write_text(golden.replace(old, new))

    assert validate(wrong).returncode != 0
    assert define(wrong, CASES["minimal"].name).returncode != 0
