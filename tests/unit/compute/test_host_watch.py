"""A host that loses a generation says so, once, with the guests that this strands."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import structlog

from sev_agent.compute.host_watch import HostWatch, ReadinessReport
from sev_agent.compute.record import State
from sev_agent.compute.record_store import RecordStore
from sev_agent.compute.slots import Generations, SlotTotal
from sev_agent.hypervisor.domains import DomainState, Guest
from sev_agent.hypervisor.platform import Platform, read_platform
from sev_agent.sev.generation import Generation
from tests.journal import opened
from tests.requests import record

SLOTS = SlotTotal({"kernel": 4})
BOTH = Generations(
    {Generation.SEV: SLOTS, Generation.SEV_ES: SLOTS}, {Generation.SEV_SNP: "the parameter sev_snp is off"}
)
LOST = Generations(
    {Generation.SEV: SLOTS}, {Generation.SEV_ES: "the parameter sev_es is off", Generation.SEV_SNP: "so is sev_snp"}
)


def guest(number: int, generation: Generation | None) -> Guest:
    return Guest(
        uuid=UUID(int=number),
        name=str(number),
        state=DomainState.RUNNING,
        generation=generation,
        metadata=None,
        vcpus=1,
        memory_mb=64,
    )


@dataclass
class Site:
    """What libvirt showed last, and what was told."""

    store: RecordStore
    seen: tuple[Guest, ...] = ()
    told: list[Mapping[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.report = ReadinessReport(self, self.store, tell=self.told.append)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    store = opened(tmp_path / "instances")
    return Site(store)


def test_at_start(site: Site) -> None:
    """What the host can run is told at the start, and not again while nothing changes."""
    site.report.look(BOTH)
    site.report.look(Generations(dict(BOTH.usable), dict(BOTH.unusable)))

    (told,) = site.told
    assert told == {
        "usable": {"amd-sev": 4, "amd-sev-es": 4},
        "unusable": {"amd-sev-snp": "the parameter sev_snp is off"},
        "stranded": {},
    }


def test_lost_and_found(site: Site) -> None:
    """A lost generation is told with its guests, of libvirt and of the journal; its return is told too."""
    stopped = record(State.STOPPED, generation=Generation.SEV_ES)
    site.store.save(stopped)
    site.store.save(record(State.DELETED, uuid=UUID(int=9), generation=Generation.SEV_ES))
    site.seen = (guest(1, Generation.SEV), guest(2, Generation.SEV_ES), guest(3, None))
    for found in (BOTH, LOST, LOST, BOTH):
        site.report.look(found)

    _, lost, back = site.told
    stranded = sorted([UUID(int=2), stopped.uuid])
    assert lost["unusable"]["amd-sev-es"] == "the parameter sev_es is off"
    assert lost["stranded"] == {"amd-sev-es": [str(uuid) for uuid in stranded]}
    assert back["stranded"] == {}
    assert site.report.stranded_counts() == [(("amd-sev",), 0), (("amd-sev-es",), 0), (("amd-sev-snp",), 0)]


def test_counts(site: Site) -> None:
    """Stranded guests are counted by generation."""
    site.seen = (guest(2, Generation.SEV_ES), guest(3, Generation.SEV_ES))
    site.report.look(LOST)

    assert dict(site.report.stranded_counts())["amd-sev-es",] == 2
    assert site.report.stranded == {Generation.SEV_ES: (UUID(int=2), UUID(int=3))}


@dataclass
class Watched:
    """A kernel's files, what the last comparison read of them, and how often a new comparison was asked for."""

    root: Path
    interval: float = 0.02
    known: Platform | None = None
    changes: asyncio.Queue[None] = field(default_factory=asyncio.Queue)

    def __post_init__(self) -> None:
        self.parameters.mkdir(parents=True)
        self.cgroup.mkdir(parents=True)
        self.watch = HostWatch(
            self.root,
            known=lambda: self.known,
            interval=self.interval,
            on_change=lambda: self.changes.put_nowait(None),
        )

    @property
    def parameters(self) -> Path:
        return self.root / "sys/module/kvm_amd/parameters"

    @property
    def cgroup(self) -> Path:
        return self.root / "sys/fs/cgroup"

    def compare(self) -> None:
        self.known = read_platform(self.root)


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    watched = Watched(tmp_path)
    (watched.parameters / "sev").write_text("Y")
    return watched


async def test_watch(watched: Watched) -> None:
    """A change of the kernel's parameters is noticed; what guests take of the slots is none."""
    await watched.watch.look()  # before the first comparison there is nothing to compare with
    watched.compare()
    (watched.cgroup / "misc.current").write_text("sev 3")
    await watched.watch.look()
    assert watched.changes.empty()

    task = asyncio.create_task(watched.watch.run())
    (watched.parameters / "sev").write_text("N")
    async with asyncio.timeout(30):
        await watched.changes.get()
    watched.compare()
    (watched.cgroup / "misc.capacity").write_text("sev 3")
    async with asyncio.timeout(30):
        await watched.changes.get()
    task.cancel()
    await asyncio.wait({task})


async def test_a_change_that_a_comparison_saw_first(watched: Watched) -> None:
    """What a comparison read between two looks, and what was taken back before the second one, is noticed."""
    watched.compare()
    await watched.watch.look()
    (watched.parameters / "sev").write_text("N")
    watched.compare()
    (watched.parameters / "sev").write_text("Y")
    await watched.watch.look()
    assert watched.changes.qsize() == 1


async def test_a_change_that_no_comparison_took_up(watched: Watched) -> None:
    """A comparison is asked for until one was made; the change is logged once."""
    watched.compare()
    (watched.parameters / "sev").write_text("N")
    with structlog.testing.capture_logs() as logged:
        await watched.watch.look()
        await watched.watch.look()
    assert watched.changes.qsize() == 2
    assert [entry["event"] for entry in logged] == ["host.platform.changed"]
    watched.compare()
    await watched.watch.look()
    assert watched.changes.qsize() == 2


async def test_a_device_that_goes(tmp_path: Path) -> None:
    """A device node that vanishes or appears is noticed by the kernel's own word, however rarely the watch looks."""
    devices = tmp_path / "dev"
    devices.mkdir()
    for name in ("kvm", "sev"):
        (devices / name).touch()
    watched = Watched(tmp_path, interval=3600)
    watched.compare()
    task = asyncio.create_task(watched.watch.run())
    for change in ((devices / "sev").unlink, (devices / "sev").touch):
        change()
        async with asyncio.timeout(60):
            await watched.changes.get()
        watched.compare()
        while not watched.changes.empty():
            watched.changes.get_nowait()
    task.cancel()
    await asyncio.wait({task})
