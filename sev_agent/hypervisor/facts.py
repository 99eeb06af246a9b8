"""What is known of each domain from its XML, until the domain changes."""

import contextlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from uuid import UUID

from lxml import etree

from sev_agent.sev.generation import Generation

_ES_POLICY_BIT = 0x4

_UNITS = {"b": 1, "bytes": 1, "KB": 10**3, "K": 2**10, "KiB": 2**10, "M": 2**20, "MiB": 2**20, "G": 2**30, "GiB": 2**30}


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """The part of a domain's XML that counting needs. ``memory_mb`` is MiB, rounded up."""

    generation: Generation | None
    vcpus: int
    memory_mb: int


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
    """The facts in a domain's XML as libvirt dumps it. Raises ``ValueError`` when they cannot be found."""
    parser = etree.XMLParser(resolve_entities=False, no_network=True, huge_tree=False)
    try:
        domain = etree.fromstring(xml, parser)
    except etree.XMLSyntaxError as error:
        raise ValueError(f"the domain's XML cannot be parsed: {error}") from None
    vcpu = domain.find("vcpu")
    memory = domain.find("memory")
    if vcpu is None or memory is None:
        raise ValueError("the domain's XML has no <vcpu> or no <memory>")
    size = int(memory.text or "0") * _UNITS[memory.get("unit", "KiB")]
    return Facts(
        generation=_generation(domain),
        vcpus=int(vcpu.get("current") or vcpu.text or "1"),
        memory_mb=-(-size // 2**20),
    )


def _generation(domain: etree._Element) -> Generation | None:
    security = domain.find("launchSecurity")
    match None if security is None else security.get("type"):
        case "sev-snp":
            return Generation.SEV_SNP
        case "sev":
            policy = int(domain.findtext("launchSecurity/policy", "0"), 0)
            return Generation.SEV_ES if policy & _ES_POLICY_BIT else Generation.SEV
        case _:
            return None
