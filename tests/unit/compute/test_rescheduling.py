"""What becomes of a build that a scheduler sent and that fails here."""

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from typing import Any, cast

import pytest

from sev_agent.compute.admission import GenerationUnavailable, MemoryShort
from sev_agent.compute.disk import DiskFailed
from sev_agent.compute.image_cache import ImageCacheFull, ImageNoSpace
from sev_agent.compute.image_download import ImageNoHash
from sev_agent.compute.image_inspection import ImageBackingFile, ImageFormatMismatch
from sev_agent.compute.instances import InstanceExists
from sev_agent.compute.record import Fault, Record, State
from sev_agent.compute.record_store import JournalFailed, RecordStore
from sev_agent.domain.firmware import NoFirmware
from sev_agent.errors import Conflict, InvalidRequest
from sev_agent.hypervisor.errors import DefineRefused, HypervisorError, NoMemory, NoSlot, StartFailed
from sev_agent.messaging.broker import BrokerUnavailable, Unroutable
from sev_agent.messaging.spool import Letter
from sev_agent.openstack.glance import ImageNotFound
from sev_agent.openstack.placement import Full
from sev_agent.schema import Attempt, Scheduling
from sev_agent.sev.policy import PolicyInvalid
from tests.journal import opened
from tests.requests import instance, record
from tests.unit.compute.scripted_host import Host, start

SENT = Scheduling()
NO_SLOT = NoSlot("every ASID is taken", remedy="use another host")


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    running = start(tmp_path / "instances")
    running.builder.go.set()
    yield running
    await running.stop()


async def test_passed_on(host: Host) -> None:
    """What another host may cure is undone, handed back with what was said here, and told as no final error."""
    asked = instance(user_data="aGVsbG8=")
    host.builder.faults = [NO_SLOT]
    earlier = Attempt(host="node0", code="disk.full", message="no space")

    await host.instances.build(asked, "req-1", Scheduling(forced_host=None, tried=(earlier,)))
    error = await host.ear.until(asked.uuid, "create.error")
    await host.idle()

    ((request_id, passed),) = host.schedulers.asked
    assert (request_id, passed.instance, passed.host) == ("req-1", asked, None)
    assert passed.tried == (
        earlier,
        Attempt(host="node1", code="hypervisor.no_slot", message="every ASID is taken"),
    )
    assert error.payload["rescheduled"] is True
    assert error.payload["state"] == "rescheduled"
    # What the next host tells, which may come first, is newer.
    assert datetime.fromisoformat(str(error.payload["updated_at"])) <= host.schedulers.asked_at[0]
    assert cast("dict[str, Any]", error.payload["fault"])["code"] == "hypervisor.no_slot"
    assert not host.builder.made
    assert host.state(asked.uuid) is State.RESCHEDULED
    assert host.instances.views() == []
    assert b"aGVsbG8=" not in host.store.files(asked.uuid).record.read_bytes()
    assert host.counted("rescheduled", "hypervisor.no_slot") == 1


ADDRESS = {"type": "bridge", "source": "br0", "address": {"interface": "192.0.2.10/24"}}


@pytest.mark.parametrize(("networks", "version"), [([{"type": "user"}], "1.1"), ([ADDRESS], "1.2")])
async def test_older_schedulers(host: Host, networks: list[dict[str, Any]], version: str) -> None:
    """What they may not know is not said where it need not be; the oldest version is spoken that can say the rest."""
    host.builder.faults = [NO_SLOT]
    asked = instance(networks=networks)

    await host.instances.build(asked, "req-1", SENT)
    await host.ear.until(asked.uuid, "create.error")
    await host.idle()

    assert host.schedulers.versions == [version]
    assert host.schedulers.sent[0]["instance"]["networks"] == networks
    ((_, passed),) = host.schedulers.asked
    assert passed.instance == asked


@pytest.mark.parametrize(
    ("fault", "elsewhere"),
    [
        (NO_SLOT, True),
        (NoMemory("none left"), True),
        (StartFailed("QEMU died"), True),
        (HypervisorError("libvirt failed"), True),
        (Full("no VCPU left"), True),
        (GenerationUnavailable("SEV is off"), True),
        (MemoryShort("none free"), True),
        (DiskFailed("cannot write"), True),
        (ImageNoSpace("no room", remedy="another image"), True),
        (ImageCacheFull("no room", remedy="another image"), True),
        (NoFirmware("none for SEV"), True),
        (JournalFailed("read-only"), True),
        (OSError(28, "No space left on device"), True),
        (InvalidRequest("is wrong"), False),
        (PolicyInvalid("bit 17"), False),
        (DefineRefused("XML"), False),
        (ImageNotFound("no such image"), False),
        (ImageNoHash("no checksum", remedy="another image"), False),
        (ImageBackingFile("leans on /etc/passwd", remedy="another image"), False),
        (ImageFormatMismatch("is no qcow2", remedy="another image"), False),
        (ZeroDivisionError("a fault of ours"), False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
def test_what_another_host_cures(fault: Exception, *, elsewhere: bool) -> None:
    """What this host lacks sends a build elsewhere; what is wrong with the request or the image does not."""
    assert Fault.of(fault, "disk").retryable is elsewhere


async def test_fault_of_the_request(host: Host) -> None:
    """What would fail on every host ends in ERROR here, as it does where no scheduler sent the build."""
    bad, unsent = instance(), instance()
    host.builder.faults = [InvalidRequest("is wrong"), NO_SLOT]

    await host.instances.build(bad, "req-1", SENT)
    told = await host.ear.until(bad.uuid, "create.error")
    await host.instances.build(unsent, "req-2")
    await host.ear.until(unsent.uuid, "create.error")
    await host.idle()

    assert "rescheduled" not in told.payload
    assert host.schedulers.asked == []
    assert (host.state(bad.uuid), host.state(unsent.uuid)) == (State.ERROR, State.ERROR)


async def test_no_scheduler(host: Host) -> None:
    """Where no scheduler has ever run, the build ends in ERROR with its own fault."""
    asked = instance()
    host.builder.faults, host.schedulers.faults = [NO_SLOT], [Unroutable("no queue")]

    await host.instances.build(asked, "req-1", SENT)
    told = await host.ear.until(asked.uuid, "create.error")

    assert cast("dict[str, Any]", told.payload["fault"])["code"] == "hypervisor.no_slot"
    assert host.state(asked.uuid) is State.ERROR


async def test_broker_away(host: Host) -> None:
    """While the broker is away the build stays unfinished, and is passed on with a later resume, once."""
    asked = instance()
    host.builder.faults, host.schedulers.faults = [NO_SLOT], [BrokerUnavailable("gone")]

    await host.instances.build(asked, "req-1", SENT)
    async with asyncio.timeout(60):
        await host.postponed.get()
    await host.idle()
    assert host.state(asked.uuid) is State.FAILING
    assert "create.error" not in host.ear.of(asked.uuid)
    host.instances.resume()
    await host.ear.until(asked.uuid, "create.error")

    assert len(host.schedulers.asked) == 1
    assert host.state(asked.uuid) is State.RESCHEDULED


async def test_failure_that_cannot_be_written_down(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """A build is another host's only once the journal here knows that it failed: else two would build the guest."""
    asked = instance()
    save, is_full = host.store.save, True

    def full(_: RecordStore, late: Record, *, owing: Letter | None = None) -> None:
        if is_full and late.state is not State.BUILDING:
            raise JournalFailed("no space")
        save(late, owing=owing)

    monkeypatch.setattr(RecordStore, "save", full)
    host.builder.faults = [NO_SLOT, NO_SLOT]

    await host.instances.build(asked, "req-1", SENT)
    await host.begun()
    await host.idle()
    assert (host.state(asked.uuid), host.schedulers.asked) == (State.BUILDING, [])
    is_full = False
    host.instances.resume()
    await host.ear.until(asked.uuid, "create.error")
    await host.idle()

    assert len(host.schedulers.asked) == 1
    assert host.state(asked.uuid) is State.RESCHEDULED


async def test_undoing_is_refused(host: Host) -> None:
    """A build is another host's only when nothing is left of it here, though its failure was told before."""
    asked = instance()
    host.builder.faults, host.builder.undo_faults = [NO_SLOT], [Conflict("it is busy")]

    await host.instances.build(asked, "req-1", SENT)
    first = await host.ear.until(asked.uuid, "create.error")
    await host.idle()
    assert (first.payload["state"], "rescheduled" in first.payload) == ("failing", False)
    assert host.schedulers.asked == []
    host.instances.resume()
    last = await host.ear.until(asked.uuid, "create.error", times=2)

    assert (last.payload["state"], last.payload["rescheduled"]) == ("rescheduled", True)
    assert len(host.schedulers.asked) == 1


async def test_restart(tmp_path: Path) -> None:
    """A daemon that died while it undid a failed build passes it on after its start, whole."""
    before = opened(tmp_path / "instances")
    failing = record(State.FAILING, fault=Fault.of(NO_SLOT, "start"), scheduling=Scheduling(forced_host="node1"))
    before.save(failing)
    host = start(tmp_path / "instances")

    host.instances.resume()
    await host.ear.until(failing.uuid, "create.error")
    await host.stop()

    ((_, passed),) = host.schedulers.asked
    assert (passed.instance, passed.host, passed.generation) == (failing.instance, "node1", failing.generation)


async def test_comes_again(host: Host) -> None:
    """A build that comes again after it was passed on goes back once more, and never begins here."""
    asked = instance()
    host.builder.faults = [NO_SLOT]
    await host.instances.build(asked, "req-1", SENT)
    await host.ear.until(asked.uuid, "create.error")
    await host.idle()
    other = Attempt(host="node2", code="disk.full", message="no space")

    await host.instances.build(asked, "req-1", Scheduling(tried=(other,)))

    _, (_, again) = host.schedulers.asked
    assert [attempt.host for attempt in again.tried] == ["node2", "node1"]
    assert host.ear.of(asked.uuid).count("create.start") == 1
    host.schedulers.faults = [BrokerUnavailable("gone")]
    with pytest.raises(BrokerUnavailable):
        await host.instances.build(asked, "req-1", SENT)
    with pytest.raises(InstanceExists, match="rescheduled"):
        await host.instances.build(asked, "req-1")


async def test_comes_again_to_no_scheduler(host: Host) -> None:
    """A build that comes again and that no scheduler can take any more ends in ERROR here, undone and told."""
    asked = instance()
    host.builder.faults = [NO_SLOT]
    await host.instances.build(asked, "req-1", SENT)
    await host.ear.until(asked.uuid, "create.error")
    await host.idle()
    assert await host.undone() == asked.uuid
    host.schedulers.faults = [Unroutable("no queue"), Unroutable("no queue")]

    await host.instances.build(asked, "req-2", SENT)
    await host.idle()

    assert host.builder.undone.qsize() == 1
    assert host.state(asked.uuid) is State.ERROR
    told = await host.ear.until(asked.uuid, "create.error", times=2)
    assert (told.payload["state"], told.context.request_id) == ("error", "req-2")
    assert cast("dict[str, Any]", told.payload["fault"])["code"] == "hypervisor.no_slot"
    assert "rescheduled" not in told.payload
    assert host.counted("error", "hypervisor.no_slot") == 1


async def test_deleted_after_it_was_passed_on(host: Host) -> None:
    """The deletion of what was passed on is a success: nothing of it is here."""
    asked = instance()
    host.builder.faults = [NO_SLOT]
    await host.instances.build(asked, "req-1", SENT)
    await host.ear.until(asked.uuid, "create.error")
    await host.idle()

    await host.instances.terminate(asked.uuid, "req-2")

    assert (await host.ear.until(asked.uuid, "delete.end")).payload["state"] == "deleted"


async def test_long_words(host: Host) -> None:
    """However much a fault says, what is passed on can be understood."""
    asked = instance()
    host.builder.faults = [StartFailed("x" * 10_000)]
    tried = tuple(Attempt(host=f"node{n + 2}", code="c", message="m") for n in range(16))

    await host.instances.build(asked, "req-1", Scheduling(tried=tried))
    await host.ear.until(asked.uuid, "create.error")

    ((_, passed),) = host.schedulers.asked
    assert len(passed.tried[-1].message) <= 4096
    assert passed.tried[-1].host == "node1"


def test_record_of_a_scheduled_build() -> None:
    """What the scheduler said survives the journal."""
    sent = Scheduling(forced_host="node1", tried=(Attempt(host="node0", code="c", message="m"),))
    kept = record(scheduling=sent)
    assert type(kept).model_validate_json(json.dumps(json.loads(kept.model_dump_json()))) == kept
