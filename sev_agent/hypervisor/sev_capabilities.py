"""What libvirt's domain capabilities say of memory encryption."""

from dataclasses import dataclass

from lxml import etree

from sev_agent.hypervisor.errors import HypervisorError


@dataclass(frozen=True, slots=True, kw_only=True)
class SevCapabilities:
    """One answer to ``virConnectGetDomainCapabilities``, read for SEV.

    ``sev`` is whether QEMU and KVM can launch encrypted guests. The largest numbers of guests come from the CPU's own
    ASID ranges; None where there is no SEV or this libvirt does not say. ``sectypes`` are the types of
    ``<launchSecurity>`` that libvirt (since 10.5) offers here. ``machine`` is the concrete machine type, if it is told.
    """

    sev: bool
    sev_max_guests: int | None
    sev_es_max_guests: int | None
    cbitpos: int | None
    reduced_phys_bits: int | None
    sectypes: frozenset[str]
    machine: str | None


def parse(xml: str) -> SevCapabilities:
    """Raises ``HypervisorError`` where ``xml`` is none."""
    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False)
    try:
        answer = etree.fromstring(xml.encode(), parser)
    except etree.XMLSyntaxError as error:
        raise HypervisorError(f"libvirt's domain capabilities are not XML: {error}") from error
    sev = answer.find("features/sev[@supported='yes']")
    return SevCapabilities(
        sev=sev is not None,
        sev_max_guests=_number(sev, "maxGuests"),
        sev_es_max_guests=_number(sev, "maxESGuests"),
        cbitpos=_number(sev, "cbitpos"),
        reduced_phys_bits=_number(sev, "reducedPhysBits"),
        sectypes=_sectypes(answer),
        machine=answer.findtext("machine"),
    )


def _number(sev: etree._Element | None, name: str) -> int | None:
    text = "" if sev is None else (sev.findtext(name) or "").strip()
    return int(text) if text.isdecimal() else None


def _sectypes(capabilities: etree._Element) -> frozenset[str]:
    found = capabilities.iterfind("features/launchSecurity[@supported='yes']/enum[@name='sectype']/value")
    return frozenset(value.text for value in found if value.text)
