import asyncio
import threading
import time
from collections.abc import Callable
from functools import partial
from uuid import uuid4

import libvirt  # noqa: TID251 - the tests of the package that may
import pytest

from sev_agent.hypervisor.errors import HypervisorUnavailable
from sev_agent.hypervisor.event_loop import EventLoop
from sev_agent.hypervisor.events import Lifecycle
from tests.libvirt_host import PATIENCE, Host, domain_xml, running_host


async def test_reports_the_life_of_a_domain_in_order(host: Host) -> None:
    """Defined, started, stopped, undefined: each with its domain, its cause and the time of its arrival."""
    uuid = uuid4()
    before = time.monotonic()
    await host.domains.start(await host.domains.define(domain_xml(uuid)))
    await host.domains.destroy(uuid)
    await host.domains.undefine(uuid)
    events = await host.next_events(4)
    assert [(event.event, event.detail) for event in events] == [
        (Lifecycle.DEFINED, "added"),
        (Lifecycle.STARTED, "booted"),
        (Lifecycle.STOPPED, "destroyed"),
        (Lifecycle.UNDEFINED, "removed"),
    ]
    assert {event.uuid for event in events} == {uuid}
    assert all(before <= event.received <= time.monotonic() for event in events)


async def test_loses_no_event_of_a_thousand_under_asyncio_debug_mode(host: Host) -> None:
    """Events enter the loop from libvirt's thread in a way that asyncio's own checks accept."""
    asyncio.get_running_loop().set_debug(True)
    uuids = [uuid4() for _ in range(500)]

    def define_all(connection: libvirt.virConnect) -> None:
        for uuid in uuids:
            connection.defineXML(domain_xml(uuid, str(uuid))).create()

    await host.hypervisor.act(define_all)
    events = await host.next_events(1000)
    assert [event.uuid for event in events if event.event is Lifecycle.STARTED] == uuids


async def test_says_nothing_after_its_end() -> None:
    """An event that was already on its way when the hypervisor was stopped is not delivered."""
    async with running_host() as host:
        await host.hypervisor.wait_up(PATIENCE)
        link = host.hypervisor.link
        await host.stop()
        while not host.changes.empty():
            host.changes.get_nowait()
        other = await asyncio.to_thread(libvirt.open, "test:///default")
        await asyncio.to_thread(lambda: link._on_reboot(None, other.lookupByName("test"), None))
        await asyncio.to_thread(other.close)
        await asyncio.sleep(0)
        assert host.events.empty()
        assert host.changes.empty()
        assert not host.hypervisor.is_up


async def test_can_be_stopped_and_opened_anew_in_one_process() -> None:
    """A second hypervisor after the first one's end connects and hears events."""
    for _ in range(3):
        async with running_host() as host:
            await host.hypervisor.wait_up(PATIENCE)
            await host.domains.define(domain_xml(uuid4()))
            assert [event.event for event in await host.next_events(1)] == [Lifecycle.DEFINED]
        assert "libvirt-events" not in {thread.name for thread in threading.enumerate()}


async def test_keeps_no_connection_open_after_its_end() -> None:
    """Closing leaves no reference by which libvirt would keep the connection."""
    async with running_host() as host:
        await host.hypervisor.wait_up(PATIENCE)
        await host.domains.start(await host.domains.define(domain_xml(uuid4())))
        link = host.hypervisor.link
    assert link._handle is None
    with pytest.raises(HypervisorUnavailable, match="is closed"):
        link._call(lambda connection: connection.getHostname())


async def test_two_event_loops_in_one_process_are_refused(host: Host) -> None:
    """libvirt has one event loop in a process; a second thread in it would break both."""
    with pytest.raises(RuntimeError, match="already runs"):
        EventLoop().start()
    assert host.hypervisor.thread_alive


async def test_beats_while_nothing_happens(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """The event thread turns every second, also with nothing to do, so that a watchdog can trust its silence."""
    monkeypatch.setattr("sev_agent.hypervisor.event_loop._STUCK_AFTER", 2.5)
    await asyncio.sleep(3)
    assert host.hypervisor.thread_alive


async def test_a_stuck_event_thread_is_not_alive(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """A callback that does not return shows as a thread that is not alive."""
    monkeypatch.setattr("sev_agent.hypervisor.event_loop._STUCK_AFTER", 0.0)
    assert not host.hypervisor.thread_alive


async def test_a_host_that_cannot_be_reached_says_why() -> None:
    """Without a libvirtd, waiting and calling end in an error that names the socket and what to do."""
    uri = "test+unix:///default?socket=/nonexistent/libvirt-sock"
    async with running_host(uri=uri, reconnect_max=0.2) as host:
        with pytest.raises(HypervisorUnavailable):
            await host.hypervisor.wait_up(0.5)
        with pytest.raises(HypervisorUnavailable, match="/nonexistent/libvirt-sock") as caught:
            await host.domains.guests()
        assert "libvirtd runs" in str(caught.value)
        assert caught.value.retryable
        assert host.told == [False], "told once for one reason"


async def test_a_hung_call_costs_its_caller_only_the_limit() -> None:
    """A call past its limit is an error; it holds its thread, visibly, until libvirt returns."""
    release = threading.Event()
    async with running_host(threads=2, call_timeout=0.05) as host:
        await host.hypervisor.wait_up(PATIENCE)
        with pytest.raises(HypervisorUnavailable, match=r"within 0\.05 s"):
            await host.hypervisor.act(lambda _connection: release.wait(PATIENCE))
        assert host.hypervisor.overdue_calls == 1
        with pytest.raises(HypervisorUnavailable, match="all 1 threads wait"):
            await host.domains.start(uuid4())
        assert await host.domains.guests()
        release.set()
        async with asyncio.timeout(PATIENCE):
            while host.hypervisor.overdue_calls:  # noqa: ASYNC110 - the count is all there is to see
                await asyncio.sleep(0.01)
        assert await host.hypervisor.act(lambda connection: connection.getHostname(), limit=PATIENCE)


async def test_a_hung_call_does_not_keep_the_process_from_ending() -> None:
    """Stopping does not wait for a call that libvirt does not answer."""
    release = threading.Event()
    async with running_host(call_timeout=0.05) as host:
        await host.hypervisor.wait_up(PATIENCE)
        with pytest.raises(HypervisorUnavailable):
            await host.hypervisor.act(lambda _connection: release.wait(PATIENCE))
        begun = time.monotonic()
        await host.stop()
        assert time.monotonic() - begun < 1.0
        release.set()


async def test_looking_does_not_wait_for_acting() -> None:
    """While every start takes long, the domains can still be listed."""
    release = threading.Event()
    async with running_host(threads=3) as host:
        await host.hypervisor.wait_up(PATIENCE)
        slow = [asyncio.create_task(host.hypervisor.act(lambda _c: release.wait(PATIENCE))) for _ in range(9)]
        assert await host.domains.guests()
        assert len([thread for thread in threading.enumerate() if thread.name.startswith("libvirt-act")]) == 2
        release.set()
        assert all(await asyncio.gather(*slow))


async def test_the_end_of_a_connection_ends_all_calls_on_it() -> None:
    """Callers hear of it at once, whether their call had begun or was still queued; what was queued never happens."""
    release = threading.Event()
    happened: list[str] = []
    async with running_host(threads=2) as host:
        await host.hypervisor.wait_up(PATIENCE)
        begun = asyncio.create_task(host.hypervisor.act(lambda _c: release.wait(PATIENCE)))
        queued = asyncio.create_task(host.hypervisor.act(lambda _c: happened.append("queued")))
        await asyncio.sleep(0)
        host.hypervisor.link._lose("a test")
        for call in (begun, queued):
            with pytest.raises(HypervisorUnavailable, match="a test"):
                await call
        assert await host.next_change()
        assert not await host.next_change()
        assert await host.next_change()
        assert await host.domains.guests()
        release.set()
    assert not happened


async def test_a_cancelled_call_that_waits_for_a_thread_never_begins() -> None:
    """A caller that gives up while its call is queued can be sure that it will not happen later."""
    release = threading.Event()
    begun: list[str] = []
    async with running_host(threads=2) as host:
        await host.hypervisor.wait_up(PATIENCE)
        first = asyncio.create_task(host.hypervisor.act(lambda _connection: release.wait(PATIENCE)))
        second = asyncio.create_task(host.hypervisor.act(lambda _connection: begun.append("second")))
        await asyncio.sleep(0)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        release.set()
        await first
        await host.hypervisor.act(lambda _connection: begun.append("third"))
    assert begun == ["third"]


async def test_calls_are_cheap(host: Host, record_property: Callable[[str, object], None]) -> None:
    """A trip through a thread and back takes well under a millisecond."""
    call = partial(host.hypervisor.act, lambda connection: connection.isAlive())
    begun = time.perf_counter()
    for _ in range(1000):
        await call()
    mean = (time.perf_counter() - begun) / 1000
    record_property("call_microseconds", round(mean * 1e6))
    print(f"one call: {mean * 1e6:.0f} us")  # noqa: T201 - the figure is the test's other result
    assert mean < 0.005
