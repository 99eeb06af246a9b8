"""What a build does around the files and the image: over libvirt's test driver, with a book in Placement's place."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import libvirt  # noqa: TID251 - what libvirt says is at issue
import pytest

from sev_agent.compute.accounting import Accounting
from sev_agent.compute.admission import Admission
from sev_agent.compute.build import Builder, DefinitionLost, ForeignDomain, bases_in_use
from sev_agent.compute.image_cache import ImageCache
from sev_agent.compute.progress import Progress, Step
from sev_agent.compute.record import Record, State
from sev_agent.compute.record_store import RecordStore
from sev_agent.config import AgentConfig
from sev_agent.errors import Unavailable
from sev_agent.hypervisor import domains as domains_module
from sev_agent.hypervisor.domains import DomainState
from sev_agent.hypervisor.errors import StartUnsettled
from sev_agent.openstack.exchange import ServiceUnavailable
from sev_agent.openstack.glance import Glance
from sev_agent.openstack.placement import Full
from sev_agent.sev.generation import Generation
from tests.journal import opened
from tests.libvirt_host import SEV, Host, agent_metadata, domain_xml, running_host
from tests.requests import record


class Book:
    """Who has claimed; ``fault`` is raised instead."""

    def __init__(self) -> None:
        self.claimed: set[UUID] = set()
        self.fault: Exception | None = None

    async def claim(self, record: Record) -> None:
        if self.fault is not None:
            raise self.fault
        self.claimed.add(record.uuid)

    async def release(self, uuid: UUID) -> None:
        if self.fault is not None:
            raise self.fault
        self.claimed.discard(uuid)


class NoGlance:
    """A Glance that is away."""

    async def get_image(self, _: UUID) -> Any:
        raise ServiceUnavailable("cannot be talked to", service="glance", url="http://127.0.0.1:1")


@dataclass
class Site:
    """Where the builder works."""

    builder: Builder
    libvirt: Host
    store: RecordStore
    book: Book

    async def guest(self, uuid: UUID, *, ours: bool = True) -> None:
        extra = agent_metadata(uuid) if ours else ""
        await self.libvirt.domains.start(
            await self.libvirt.domains.define(domain_xml(uuid, f"guest-{uuid}", security=SEV, extra=extra))
        )

    def accepted(self, state: State = State.BUILDING) -> Record:
        """A record with a disk, and its claim."""
        accepted = record(state, base_image=Path("/images/base"))
        self.store.save(accepted)
        self.store.files(accepted.uuid).disk.write_bytes(b"")
        self.book.claimed.add(accepted.uuid)
        return accepted

    async def build(self, accepted: Record, *, resumed: bool) -> Record:
        return await self.builder.build(accepted, Progress(lambda _, __: None), resumed=resumed)

    async def undo(self, accepted: Record) -> list[Step]:
        """The steps that it took."""
        steps: list[Step] = []
        await self.builder.undo(accepted, Progress(lambda step, _: steps.append(step)))
        return steps

    def left(self, accepted: Record) -> list[str]:
        return [path.name for path in self.store.files(accepted.uuid).directory.iterdir()]


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    store, book = opened(tmp_path / "instances"), Book()
    async with running_host() as libvirt:
        assert await libvirt.next_change()
        builder = Builder(
            store=store,
            glance=cast("Glance", NoGlance()),
            cache=cast("ImageCache", None),
            accounting=cast("Accounting", book),
            domains=libvirt.domains,
            admission=Admission(overhead_mb=128),
            config=AgentConfig(),
        )
        yield Site(builder, libvirt, store, book)


async def test_undo(site: Site) -> None:
    """Domain, files and claim go, the record stays; again is harmless."""
    accepted = site.accepted()
    await site.guest(accepted.uuid)

    for _ in range(2):
        await site.undo(accepted)

        assert await site.libvirt.domains.state(accepted.uuid) is None
        assert site.left(accepted) == ["instance.json"]
        assert not site.book.claimed


async def test_undo_of_a_late_start(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A start that libvirt carries out while the domain is being removed leaves no guest behind."""
    accepted = site.accepted()
    domains = site.libvirt.domains
    await site.guest(accepted.uuid)
    undefine = domains.undefine

    async def started_before(uuid: UUID) -> None:
        await domains.start(uuid)
        await undefine(uuid)

    monkeypatch.setattr(domains, "undefine", started_before)
    await site.undo(accepted)

    assert await domains.state(accepted.uuid) is None


async def test_start_that_takes_long(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A build whose guest is still being started when it is resumed waits; the guest that came up is its own."""
    accepted = site.accepted().with_(generation=Generation.SEV)
    await site.guest(accepted.uuid)
    monkeypatch.setattr(domains_module, "_START_SECONDS", 0.0)
    with monkeypatch.context() as slow:
        starting = [libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_STARTING_UP]
        slow.setattr(libvirt.virDomain, "state", lambda _: starting)
        with pytest.raises(StartUnsettled):
            await site.build(accepted, resumed=True)

    assert (await site.build(accepted, resumed=True)).state is State.ACTIVE
    assert await site.libvirt.domains.state(accepted.uuid) is DomainState.RUNNING


async def test_undo_without_placement(site: Site) -> None:
    """While Placement is away, what can be undone is, and the rest is an error that says to come again."""
    accepted = site.accepted()
    await site.guest(accepted.uuid)
    site.book.fault = Unavailable("Placement is away")

    with pytest.raises(Unavailable):
        await site.undo(accepted)

    assert await site.libvirt.domains.state(accepted.uuid) is None
    site.book.fault = None
    await site.undo(accepted)
    assert not site.book.claimed


async def test_undo_without_libvirt(site: Site) -> None:
    """While libvirt is away nothing is given back: the guest may run, and its disk and its slot are its own."""
    accepted = site.accepted()
    await site.libvirt.stop()

    with pytest.raises(Unavailable):
        await site.undo(accepted)

    assert "disk.qcow2" in site.left(accepted)
    assert site.book.claimed == {accepted.uuid}


async def test_stranger(site: Site) -> None:
    """A domain of this UUID that somebody else made is no ground to build on, and is neither touched nor uncounted."""
    accepted = site.accepted()
    await site.guest(accepted.uuid, ours=False)

    with pytest.raises(ForeignDomain) as caught:
        await site.build(accepted, resumed=False)
    await site.undo(accepted)

    assert caught.value.field == "instance.uuid"
    assert await site.libvirt.domains.state(accepted.uuid) is DomainState.RUNNING
    assert site.book.claimed == {accepted.uuid}
    assert site.left(accepted) == ["instance.json"]


async def test_resumed_beside_its_guest(site: Site) -> None:
    """A build whose guest runs already, as after a crash, is done: it is claimed, and not built twice."""
    accepted = site.accepted()
    await site.guest(accepted.uuid)
    site.book.claimed.clear()

    active = await site.build(accepted, resumed=True)

    assert active.state is State.ACTIVE
    assert site.book.claimed == {accepted.uuid}


async def test_resumed_beside_a_stopped_guest(site: Site) -> None:
    """A build whose guest is defined and not running goes through its steps again."""
    accepted = site.accepted()
    await site.guest(accepted.uuid)
    await site.libvirt.domains.destroy(accepted.uuid)

    with pytest.raises(ServiceUnavailable):
        await site.build(accepted, resumed=True)


async def test_resumed_without_a_slot(site: Site) -> None:
    """A guest that runs and whose slot is gone is told, not taken as built."""
    accepted = site.accepted()
    await site.guest(accepted.uuid)
    site.book.fault = Full("no slot")

    with pytest.raises(Full):
        await site.build(accepted, resumed=True)


async def test_glance_away(site: Site) -> None:
    """Without Glance a build fails at its first step, with what cannot be reached, and has claimed nothing."""
    accepted = record(State.BUILDING)
    site.store.save(accepted)
    progress = Progress(lambda _, __: None)

    with pytest.raises(ServiceUnavailable, match=r"glance at http://127\.0\.0\.1:1"):
        await site.builder.build(accepted, progress, resumed=False)

    assert progress.failed is Step.IMAGE
    assert not site.book.claimed


async def test_libvirt_away(site: Site) -> None:
    """Without libvirt a build begins nothing."""
    accepted = site.accepted()
    await site.libvirt.stop()

    with pytest.raises(Unavailable):
        await site.build(accepted, resumed=False)


def test_bases_in_use(tmp_path: Path) -> None:
    """An image is in use while any instance may have a disk over it, also one whose record was set aside."""
    store = opened(tmp_path / "instances")
    for state in State:
        store.save(record(state, base_image=Path(f"/images/{state}")))
    damaged = record(base_image=Path("/images/damaged"))
    store.save(damaged)
    path = store.files(damaged.uuid).record
    path.write_bytes(path.read_bytes().replace(b'"state"', b'"colour": "red", "state"'))
    again = opened(tmp_path / "instances")

    used = {base.name for base in bases_in_use(again)()}

    without_disk = {State.ERROR, State.RESCHEDULED, State.DELETED}
    assert used == {*(state for state in State if state not in without_disk), "damaged"}


async def test_undo_tells_its_steps(site: Site) -> None:
    """Each thing that goes is a step of its own; where there is no domain, none is about one."""
    accepted = site.accepted()
    await site.guest(accepted.uuid)

    assert await site.undo(accepted) == [Step.DESTROY, Step.UNDEFINE, Step.FILES, Step.RELEASE]
    assert await site.undo(accepted) == [Step.FILES, Step.RELEASE]


async def test_redefine(site: Site) -> None:
    """What libvirt forgot it is told again as it was built; where that is nowhere, the error says so."""
    accepted = site.accepted(State.STOPPED)
    with pytest.raises(DefinitionLost, match="does not know instance"):
        await site.builder.redefine(accepted)

    xml = domain_xml(accepted.uuid, f"guest-{accepted.uuid}", security=SEV, extra=agent_metadata(accepted.uuid))
    site.store.files(accepted.uuid).definition.write_text(xml)
    await site.builder.redefine(accepted)

    assert await site.libvirt.domains.is_managed(accepted.uuid)
    assert await site.libvirt.domains.state(accepted.uuid) is DomainState.SHUTOFF
