"""What is known of each domain from its XML, until the domain changes."""

import contextlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from uuid import UUID

import structlog
from lxml import etree

from sev_agent.domain import launch_security, metadata
from sev_agent.domain.spec import GuestMetadata
from sev_agent.domain.xml import DomainXmlInvalid, parse_domain
from sev_agent.sev.generation import Generation

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """The part of a domain's XML that counting needs. ``memory_mb`` is MiB, rounded up."""

    generation: Generation | None
    metadata: GuestMetadata | None
    vcpus: int
    memory_mb: int
    is_novas: bool = False


class FactsCache:
    """Facts by domain. It belongs to one connection and to the asyncio loop.

    A domain may change while its XML is being read in a thread: what was forgotten during a reading is not kept
    from it.
    """

    def __init__(self) -> None:
        self._known: dict[UUID, Facts] = {}
        self._readings: list[set[UUID]] = []

    @property
    def known(self) -> Mapping[UUID, Facts]:
        return self._known

    def forget(self, domain: UUID) -> None:
        self._known.pop(domain, None)
        for changed in self._readings:
            changed.add(domain)

    @contextlib.contextmanager
    def reading(self) -> Iterator["Reading"]:
        """A block in which XML is read; inside it, ``Reading.keep`` what was found."""
        changed: set[UUID] = set()
        self._readings.append(changed)
        try:
            yield Reading(self._known, changed)
        finally:
            self._readings = [reading for reading in self._readings if reading is not changed]


class Reading:
    """One reading of many domains' XML."""

    def __init__(self, known: dict[UUID, Facts], changed: Collection[UUID]) -> None:
        self._known = known
        self._changed = changed

    def keep(self, learnt: Mapping[UUID, Facts], present: Collection[UUID]) -> None:
        """Remember ``learnt``, and drop all domains that are not ``present``."""
        for domain in self._known.keys() - present:
            del self._known[domain]
        self._known.update((domain, facts) for domain, facts in learnt.items() if domain not in self._changed)


def read_facts(xml: str) -> Facts:
    """The facts in a domain's XML as libvirt dumps it, always in KiB. Raises ``DomainXmlInvalid``.

    Metadata of ours that somebody spoiled makes the domain a foreign one; it still counts.
    """
    domain = parse_domain(xml)
    try:
        vcpu = domain.find("vcpu")
        vcpus = 1 if vcpu is None else int(vcpu.get("current") or vcpu.text or "1")
        memory_mb = -(-int(domain.findtext("memory") or "0") // 1024)
    except ValueError as error:
        raise DomainXmlInvalid(f"the size of domain {domain.findtext('name')!r} cannot be read: {error}") from None
    try:
        known = metadata.read(domain)
    except DomainXmlInvalid as error:
        log.warning("hypervisor.metadata.unreadable", domain=domain.findtext("name"), reason=str(error))
        known = None
    return Facts(
        generation=launch_security.read(domain),
        metadata=known,
        vcpus=vcpus,
        memory_mb=memory_mb,
        is_novas=metadata.is_novas(domain),
    )


def read_claim(element: str, *, vcpus: int, memory_mb: int) -> Facts | None:
    """The facts that this agent's metadata ``element`` claims. None if it cannot be read."""
    try:
        domain = parse_domain(f"<domain><metadata>{element}</metadata></domain>")
        for child in domain.iterfind("metadata/*"):
            # libvirt takes the namespace off when it hands out one element of the metadata.
            child.tag = f"{{{metadata.NAMESPACE}}}{etree.QName(child).localname}"
        known = metadata.read(domain)
    except DomainXmlInvalid:
        return None
    if known is None:
        return None
    return Facts(generation=known.generation, metadata=known, vcpus=vcpus, memory_mb=memory_mb)
