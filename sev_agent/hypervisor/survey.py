"""All domains of the host at a glance."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from uuid import UUID

import libvirt  # noqa: TID251 - this package is the one that may

from sev_agent.domain.metadata import NAMESPACE
from sev_agent.domain.spec import GuestMetadata
from sev_agent.hypervisor.errors import HypervisorError, operation_failure, text_of
from sev_agent.hypervisor.facts import Facts, read_claim, read_facts
from sev_agent.sev.generation import Generation


class DomainState(StrEnum):
    """libvirt's states; ``NOSTATE`` is what a driver says that does not know.

    ``STARTING`` is told apart from ``PAUSED`` here: libvirt's operation is not over, and no guest runs yet. A libvirtd
    that is killed in it, before it has noted QEMU's pid, keeps the domain in this state for ever, and answers nothing
    more that needs the domain's lock (tried with 11.3).
    """

    NOSTATE = "nostate"
    STARTING = "starting"
    RUNNING = "running"
    BLOCKED = "blocked"
    PAUSED = "paused"
    SHUTDOWN = "shutdown"
    SHUTOFF = "shutoff"
    CRASHED = "crashed"
    PMSUSPENDED = "pmsuspended"

    @property
    def is_active(self) -> bool:
        """Whether the domain has a QEMU process, and with it memory and, if encrypted, a slot.

        So has one that has crashed and is preserved (``on_crash``); where its process ends, it is ``SHUTOFF``.
        """
        return self not in {DomainState.SHUTOFF, DomainState.STARTING}


_STATES = {
    getattr(libvirt, f"VIR_DOMAIN_{state.name}"): state for state in DomainState if state is not DomainState.STARTING
}


def state_of(number: int, reason: int) -> DomainState:
    if (number, reason) == (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_STARTING_UP):
        return DomainState.STARTING
    return _STATES.get(number, DomainState.NOSTATE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Guest:
    """A domain of this host, whoever made it.

    ``generation`` is None if it is not encrypted, ``metadata`` if this agent did not build it; ``is_novas`` if Nova
    did. ``memory_mb`` is MiB.
    """

    uuid: UUID
    name: str
    state: DomainState
    generation: Generation | None
    metadata: GuestMetadata | None
    vcpus: int
    memory_mb: int
    is_novas: bool = False

    @property
    def is_active(self) -> bool:
        return self.state.is_active


@dataclass(frozen=True, slots=True)
class Survey:
    guests: tuple[Guest, ...]
    learnt: Mapping[UUID, Facts]


def survey(connection: libvirt.virConnect, *, known: Mapping[UUID, Facts]) -> Survey:
    """All domains."""
    return _survey(((domain, _listed_state(stats)) for domain, stats in _list(connection)), known)


def survey_of(connection: libvirt.virConnect, *, uuids: Iterable[UUID], known: Mapping[UUID, Facts]) -> Survey:
    """Those of the domains ``uuids`` that there are."""
    return _survey((found for uuid in uuids if (found := _find(connection, uuid)) is not None), known)


def _listed_state(stats: Mapping[str, Any]) -> DomainState:
    return state_of(stats.get("state.state", libvirt.VIR_DOMAIN_NOSTATE), stats.get("state.reason", 0))


def _survey(domains: Iterable[tuple[libvirt.virDomain, DomainState]], known: Mapping[UUID, Facts]) -> Survey:
    guests: list[Guest] = []
    learnt: dict[UUID, Facts] = {}
    for domain, state in domains:
        uuid = UUID(bytes=domain.UUID())
        facts = known.get(uuid)
        if facts is None:
            facts, is_certain = _read(domain, state)
            if facts is None:
                continue
            if is_certain:
                learnt[uuid] = facts
        guests.append(
            Guest(
                uuid=uuid,
                name=domain.name(),
                state=state,
                generation=facts.generation,
                metadata=facts.metadata,
                vcpus=facts.vcpus,
                memory_mb=facts.memory_mb,
                is_novas=facts.is_novas,
            )
        )
    return Survey(tuple(guests), learnt)


def _list(connection: libvirt.virConnect) -> list[tuple[libvirt.virDomain, dict[str, Any]]]:
    try:
        return connection.getAllDomainStats(libvirt.VIR_DOMAIN_STATS_STATE)  # type: ignore[no-any-return]
    except libvirt.libvirtError as error:
        raise HypervisorError(
            f"cannot list the domains: {text_of(error)}", remedy="look into libvirtd's log"
        ) from error


def _find(connection: libvirt.virConnect, uuid: UUID) -> tuple[libvirt.virDomain, DomainState] | None:
    try:
        domain = connection.lookupByUUID(uuid.bytes)
        return domain, state_of(*domain.state())
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return None
        raise operation_failure("look at", uuid, error) from error


def _read(domain: libvirt.virDomain, state: DomainState) -> tuple[Facts | None, bool]:
    """What is known of ``domain``, and whether that may be kept. None if it vanished after it was listed.

    libvirt gives no XML while an operation on the domain holds its lock: a start of minutes, a reset of a hung guest.
    Then what this agent wrote into the domain stands in; a foreign domain is waited for, up to libvirt's 30 seconds,
    but for one that is being started: its event tells when it has been.
    """
    try:
        if state is DomainState.STARTING:
            return claim_of(domain), False
        if _is_busy(domain) and (claim := claim_of(domain)) is not None:
            return claim, False
        return read_facts(domain.XMLDesc()), True
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return None, False
        raise operation_failure("read", domain.name(), error) from error


def _is_busy(domain: libvirt.virDomain) -> bool:
    try:
        return bool(domain.controlInfo()[0] != libvirt.VIR_DOMAIN_CONTROL_OK)
    except libvirt.libvirtError as error:
        if error.get_error_code() in {libvirt.VIR_ERR_OPERATION_INVALID, libvirt.VIR_ERR_NO_SUPPORT}:
            return False  # it does not run, or the driver (libvirt's test driver) has no such question
        raise


def claim_of(domain: libvirt.virDomain) -> Facts | None:
    """What this agent wrote into ``domain``, None in a foreign one. libvirt answers it also for a busy domain."""
    try:
        metadata = domain.metadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, NAMESPACE)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN_METADATA:
            return None
        raise
    # info() would wait for a busy domain; these two do not.
    vcpus = domain.vcpusFlags(libvirt.VIR_DOMAIN_AFFECT_CURRENT)
    return read_claim(metadata, vcpus=vcpus, memory_mb=-(-domain.maxMemory() // 1024))
