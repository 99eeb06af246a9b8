"""What the host can run, watched while the daemon runs: a change is acted on at once, and told."""

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol
from uuid import UUID

import structlog

from sev_agent.compute.device_nodes import DeviceNodes
from sev_agent.compute.record_store import RecordStore
from sev_agent.compute.slots import Generations
from sev_agent.hypervisor.domains import Guest
from sev_agent.hypervisor.platform import Platform, read_platform
from sev_agent.observe.metrics import Labelled
from sev_agent.sev.generation import Generation
from sev_agent.uninterrupted import raise_if_cancelled

log = structlog.stdlib.get_logger(__name__)


_NODES: Final = ("kvm", "sev")
"""The first is made by KVM's module, and gone while that is loaded anew; the second by the secure processor's."""

_SETTLED_SECONDS: Final = 0.1


class HostWatch:
    """Looks at the kernel's files when a device node comes or goes; calls ``on_change`` while they are not as known.

    Modules read their parameters when they are loaded, and make their nodes after it: that is the event to wait for.
    What makes no event (a counter of the cgroup) is found every ``interval`` seconds, which must serve also where
    ``/dev`` cannot be watched.
    ``known`` is the reading that the last comparison acted on, ``None`` before the first. Not the last that was seen
    here: a comparison may see a change before the watch does, and what is then taken back is a change as well.
    """

    def __init__(
        self,
        platform_root: Path,
        *,
        known: Callable[[], Platform | None],
        interval: float,
        on_change: Callable[[], None],
    ) -> None:
        self._root = platform_root
        self._known = known
        self._interval = interval
        self._on_change = on_change
        self._told: Platform | None = None
        self._due = asyncio.Event()
        self._nodes = DeviceNodes(platform_root / "dev", _NODES, on_change=self._due.set)

    async def run(self) -> None:
        """Watch until cancelled."""
        async with asyncio.TaskGroup() as watching:
            watching.create_task(self._nodes.run(), name="device-nodes")
            while True:
                raise_if_cancelled()
                await self.look()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._interval):
                        await self._due.wait()
                        # A module that is loaded anew takes its node away and makes it again: one look is enough.
                        await asyncio.sleep(_SETTLED_SECONDS)
                self._due.clear()

    async def look(self) -> None:
        """Read the files, and compare them with what is known; before anything is known there is nothing to compare."""
        now = await asyncio.to_thread(read_platform, self._root)
        known = self._known()
        if known is None or now == known:
            self._told = None
            return
        if now != self._told:  # said once, however often it is asked for
            log.warning("host.platform.changed", was=_words(known), now=_words(now))
        self._told = now
        self._on_change()


def _words(platform: Platform) -> dict[str, Any]:
    return {
        "sev": platform.sev,
        "sev_es": platform.sev_es,
        "sev_snp": platform.sev_snp,
        "capacity": dict(platform.misc_capacity),
        "sev_device": platform.sev_device,
    }


class _SeesGuests(Protocol):
    @property
    def seen(self) -> tuple[Guest, ...]: ...


@dataclass(frozen=True, slots=True)
class Readiness:
    """Which generations a host can run, and whose guests it has although it cannot: their UUIDs, in order."""

    totals: Mapping[Generation, int]
    unusable: Mapping[Generation, str]
    stranded: Mapping[Generation, tuple[UUID, ...]]

    def payload(self) -> dict[str, Any]:
        """As JSON can carry it."""
        return {
            "usable": {generation.value: total for generation, total in self.totals.items()},
            "unusable": {generation.value: why for generation, why in self.unusable.items()},
            "stranded": {
                generation.value: [str(uuid) for uuid in uuids] for generation, uuids in self.stranded.items()
            },
        }


class ReadinessReport:
    """Tells when the host becomes able or unable to run a generation, and which guests that strands.

    ``tell`` takes what ``sev.host.generations`` carries; it is called at the daemon's start and at every change.
    """

    def __init__(self, domains: _SeesGuests, store: RecordStore, *, tell: Callable[[Mapping[str, Any]], None]) -> None:
        self._domains = domains
        self._store = store
        self._tell = tell
        self._last: Readiness | None = None

    @property
    def stranded(self) -> Mapping[Generation, tuple[UUID, ...]]:
        """The guests that the host has and cannot run any more, as last looked at."""
        return {} if self._last is None else self._last.stranded

    def stranded_counts(self) -> Labelled:
        return [((generation.value,), float(len(self.stranded.get(generation, ())))) for generation in Generation]

    def look(self, found: Generations) -> None:
        """Compare with the last look, and tell what is new."""
        now = Readiness(
            totals={generation: slots.total for generation, slots in found.usable.items()},
            unusable=dict(found.unusable),
            stranded=self._stranded(found),
        )
        if now == self._last:
            return
        before, self._last = self._last, now
        for generation in Generation:
            self._log(generation, before, now)
        self._tell(now.payload())

    def _stranded(self, found: Generations) -> dict[Generation, tuple[UUID, ...]]:
        generations = {record.uuid: record.generation for record in self._store if record.state.has_files}
        generations |= {guest.uuid: guest.generation for guest in self._domains.seen}
        by_generation = {
            lost: tuple(sorted(uuid for uuid, generation in generations.items() if generation is lost))
            for lost in found.unusable
        }
        return {generation: uuids for generation, uuids in by_generation.items() if uuids}

    @staticmethod
    def _log(generation: Generation, before: Readiness | None, now: Readiness) -> None:
        was_usable = before is not None and generation in before.totals
        if generation in now.totals:
            if not was_usable:
                log.info("host.generation.usable", generation=generation.value, slots=now.totals[generation])
        elif was_usable or before is None:
            lost = log.warning if was_usable else log.info
            lost("host.generation.unusable", generation=generation.value, reason=now.unusable[generation])
        stranded = now.stranded.get(generation, ())
        if stranded and (before is None or before.stranded.get(generation) != stranded):
            log.error(
                "host.guests.stranded",
                generation=generation.value,
                reason=now.unusable[generation],
                guests=[str(uuid) for uuid in stranded],
                remedy="those that run go on, and cannot start again here: give the host its generation back, or build"
                " them on another host",
            )
