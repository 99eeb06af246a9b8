"""Domains: defined, started, stopped, removed, looked at. Every operation is one trip through a thread."""

import asyncio
import time
from collections.abc import Callable, Collection
from enum import Enum, auto
from functools import partial
from typing import TypeVar
from uuid import UUID

import libvirt  # noqa: TID251 - this package is the one that may

from sev_agent.hypervisor.connection import Hypervisor
from sev_agent.hypervisor.errors import (
    HypervisorError,
    HypervisorUnavailable,
    StartUnsettled,
    define_failure,
    operation_failure,
    stuck,
    text_of,
)
from sev_agent.hypervisor.launch_failures import start_failure
from sev_agent.hypervisor.survey import DomainState, Guest, claim_of, state_of, survey, survey_of

__all__ = ["DomainState", "Domains", "Guest"]

T = TypeVar("T")

_UNDEFINE_ANYWHERE = libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA

_START_SECONDS = 30.0
"""How long one look waits for the end of a start."""

_LONGEST_START_SECONDS = 900.0
"""The memory of an encrypted guest is pinned and encrypted before it runs; a terabyte of it takes minutes."""

_POLL_SECONDS = 0.2

_TEST_DRIVER = "TEST"
"""libvirt's in-process driver; it knows neither NVRAM nor checkpoints."""


class _Raise(Enum):
    """The default of what to do about a missing domain."""

    RAISE = auto()


class Domains:
    """Operations on the domains of one hypervisor.

    All raise ``HypervisorUnavailable`` while libvirt is away or too slow, ``DomainNotFound`` where a domain is needed
    and missing, and ``HypervisorError`` for other refusals. Each may be repeated: what is already so is success.
    """

    def __init__(self, hypervisor: Hypervisor) -> None:
        self._hypervisor = hypervisor
        self._seen: tuple[Guest, ...] = ()
        self._unsettled: dict[UUID, float] = {}
        """The domains whose starts have not ended, by when that was seen first."""

    @property
    def seen(self) -> tuple[Guest, ...]:
        """What ``guests`` said the last time it could."""
        return self._seen

    async def define(self, xml: str) -> UUID:
        """Make the domain ``xml`` known to libvirt, or change it. Raises ``DefineRefused``."""
        return await self._hypervisor.act(lambda connection: UUID(bytes=_define(connection, xml).UUID()))

    async def start(self, uuid: UUID) -> bool:
        """Whether it had to be started. Raises ``StartFailed``, ``NoSlot``, ``NoMemory``, and as ``runs``."""
        try:
            started = await self._act("start", uuid, _start)
        except StartUnsettled:
            self._refuse_endless(uuid)
            raise
        except HypervisorUnavailable:
            raise
        except HypervisorError:
            self._unsettled.pop(uuid, None)
            raise
        self._unsettled.pop(uuid, None)
        return started

    async def shutdown(self, uuid: UUID) -> None:
        """Press the guest's power button. It ends when its own system wants to, if ever."""
        await self._act("shut down", uuid, lambda domain: _unless_inactive(domain, domain.shutdown))

    async def destroy(self, uuid: UUID) -> None:
        """End its QEMU process. A domain that is not running, or not there, is well ended."""
        await self._act("destroy", uuid, lambda domain: _unless_inactive(domain, domain.destroy), missing=None)

    async def undefine(self, uuid: UUID) -> None:
        """Make libvirt forget it, with snapshots, saved state and NVRAM. A missing one is success."""
        flags = _UNDEFINE_ANYWHERE
        if self._hypervisor.link.driver != _TEST_DRIVER:
            flags |= libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
        await self._act("undefine", uuid, lambda domain: domain.undefineFlags(flags), missing=None)
        self._unsettled.pop(uuid, None)

    async def state(self, uuid: UUID) -> DomainState | None:
        """Its state, or None where libvirt knows no such domain."""
        return await self._look("look at", uuid, _state, missing=None)

    async def runs(self, uuid: UUID) -> bool:
        """Whether its guest runs; a start that libvirt carries out is waited for, as it may outlive who asked for it.

        Raises ``StartUnsettled`` for one that has not ended, so that it is asked again; after a quarter of an hour
        another ``HypervisorError``, as libvirt then will not end it any more.
        """
        deadline = time.monotonic() + _START_SECONDS
        while (state := await self.state(uuid)) is DomainState.STARTING:
            if time.monotonic() > deadline:
                self._refuse_endless(uuid)
                raise StartUnsettled(f"domain {uuid} is still being started")
            await asyncio.sleep(_POLL_SECONDS)
        self._unsettled.pop(uuid, None)
        return state is not None and state.is_active

    def _refuse_endless(self, uuid: UUID) -> None:
        """Raises ``HypervisorError`` where the start of ``uuid``, which has not ended, has gone on for too long."""
        now = time.monotonic()
        if now - self._unsettled.setdefault(uuid, now) >= _LONGEST_START_SECONDS:
            raise stuck(uuid, f"its start has not ended for {_LONGEST_START_SECONDS:g} s")

    async def is_managed(self, uuid: UUID) -> bool:
        """Whether libvirt knows the domain, and this agent built it."""
        claim = await self._look("read", uuid, claim_of, missing=None)
        return claim is not None and claim.metadata is not None and claim.metadata.uuid == uuid

    async def guests(self) -> tuple[Guest, ...]:
        """All domains. One libvirt call for all, and one more for each that has changed since the last time."""
        facts = self._hypervisor.link.facts
        with facts.reading() as reading:
            seen = await self._hypervisor.look(partial(survey, known=facts.known))
            reading.keep(seen.learnt, {guest.uuid for guest in seen.guests})
        self._seen = seen.guests
        return seen.guests

    async def guests_among(self, uuids: Collection[UUID]) -> tuple[Guest, ...]:
        """Those of the domains ``uuids`` that there are: two or three libvirt calls for each, whatever else runs."""
        facts = self._hypervisor.link.facts
        with facts.reading() as reading:
            seen = await self._hypervisor.look(partial(survey_of, uuids=uuids, known=facts.known))
            reading.keep(seen.learnt, facts.known.keys() | seen.learnt.keys())
        return seen.guests

    async def _act(
        self,
        operation: str,
        uuid: UUID,
        action: Callable[[libvirt.virDomain], T],
        *,
        missing: T | _Raise = _Raise.RAISE,
    ) -> T:
        return await self._hypervisor.act(partial(_on_domain, operation, uuid, action, missing))

    async def _look(
        self,
        operation: str,
        uuid: UUID,
        action: Callable[[libvirt.virDomain], T],
        *,
        missing: T | _Raise = _Raise.RAISE,
    ) -> T:
        return await self._hypervisor.look(partial(_on_domain, operation, uuid, action, missing))


# All below runs in a thread, and lets no libvirt object out of it.


def _on_domain(
    operation: str,
    uuid: UUID,
    action: Callable[[libvirt.virDomain], T],
    missing: T | _Raise,
    connection: libvirt.virConnect,
) -> T:
    try:
        return action(connection.lookupByUUID(uuid.bytes))
    except libvirt.libvirtError as error:
        if missing is not _Raise.RAISE and error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return missing
        raise operation_failure(operation, uuid, error) from error


def _state(domain: libvirt.virDomain) -> DomainState:
    return state_of(*domain.state())


def _define(connection: libvirt.virConnect, xml: str) -> libvirt.virDomain:
    try:
        # Without validation libvirt drops what it does not know, without a word.
        return connection.defineXMLFlags(xml, libvirt.VIR_DOMAIN_DEFINE_VALIDATE)
    except libvirt.libvirtError as error:
        raise define_failure(error) from error


def _start(domain: libvirt.virDomain) -> bool:
    try:
        domain.create()
    except libvirt.libvirtError as error:
        state = _state(domain)
        if state.is_active:
            return False
        # Another start has the domain: one that was asked for before, and that took longer than was waited for it.
        if state is DomainState.STARTING or error.get_error_code() == libvirt.VIR_ERR_OPERATION_TIMEOUT:
            raise StartUnsettled(f"domain {domain.name()} is being started: {text_of(error)}") from error
        raise start_failure(domain.name(), error) from error
    return True


def _unless_inactive(domain: libvirt.virDomain, action: Callable[[], object]) -> None:
    try:
        action()
    except libvirt.libvirtError:
        if domain.isActive():
            raise
