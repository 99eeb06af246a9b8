import pytest

from sev_agent.domain import launch_security, metadata
from sev_agent.domain.metadata import NAMESPACE
from sev_agent.domain.xml import DomainXmlInvalid, parse_domain
from sev_agent.sev.generation import Generation


def _launch(content: str) -> str:
    return f"<domain type='kvm'><name>d</name>{content}</domain>"


@pytest.mark.parametrize(
    ("xml", "generation"),
    [
        ("", None),
        ("<launchSecurity type='sev'><policy>0x0033</policy></launchSecurity>", Generation.SEV),
        ("<launchSecurity type='sev'><policy>51</policy></launchSecurity>", Generation.SEV),
        ("<launchSecurity type='sev'><policy>0x0007</policy></launchSecurity>", Generation.SEV_ES),
        (
            "<launchSecurity type='sev'><cbitpos>51</cbitpos><policy>0x01000037</policy></launchSecurity>",
            Generation.SEV_ES,
        ),
        ("<launchSecurity type='sev'><policy>0x0473</policy></launchSecurity>", Generation.SEV),
        ("<launchSecurity type='sev-snp'><policy>0x00030000</policy></launchSecurity>", Generation.SEV_SNP),
        ("<launchSecurity type='s390-pv'/>", None),
        ("<launchSecurity type='tdx'/>", None),
    ],
)
def test_generation(xml: str, generation: Generation | None) -> None:
    """The generation is read from launch security of any origin; what is not AMD's is none of ours."""
    assert launch_security.read(parse_domain(_launch(xml))) is generation


def test_no_metadata() -> None:
    """A domain without our metadata is not ours, whatever others wrote there."""
    assert metadata.read(parse_domain(_launch(""))) is None
    novas = _launch("<metadata><n:instance xmlns:n='http://openstack.org/xmlns/libvirt/nova/1.1'/></metadata>")
    assert metadata.read(parse_domain(novas)) is None


@pytest.mark.parametrize("attributes", ["", "uuid='x'"])
def test_broken_metadata(attributes: str) -> None:
    """Metadata in our namespace that cannot be read is an error that names the domain."""
    xml = _launch(f"<metadata><s:instance xmlns:s='{NAMESPACE}' {attributes}/></metadata>")

    with pytest.raises(DomainXmlInvalid, match="domain 'd'"):
        metadata.read(parse_domain(xml))


@pytest.mark.parametrize(
    "xml",
    [
        "",
        "not xml",
        "<domain>",
        "<network/>",
        "\ud800",
        _launch("<launchSecurity type='sev'><policy>none</policy></launchSecurity>"),
        _launch("<launchSecurity type='sev'/>"),
        "<!DOCTYPE domain [<!ENTITY x SYSTEM 'file:///etc/hostname'>]><domain><name>&x;</name></domain>",
        "<!DOCTYPE domain [<!ENTITY a 'aaaa'><!ENTITY b '&a;&a;&a;'>]><domain><name>&b;</name></domain>",
        "<domain>" + "<a>" * 300 + "</a>" * 300 + "</domain>",
    ],
)
def test_hostile_xml(xml: str) -> None:
    """XML that is broken, of another kind, deep, or brings a document type is refused, and nothing is loaded."""
    with pytest.raises(DomainXmlInvalid):
        launch_security.read(parse_domain(xml))
