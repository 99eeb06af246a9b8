import asyncio
import os
import threading
import time
from uuid import uuid4

import pytest

from sev_agent.hypervisor.errors import HypervisorUnavailable
from sev_agent.hypervisor.events import Lifecycle
from tests.integration.hypervisor.conftest import PrivateLibvirtd
from tests.libvirt_host import PATIENCE, SEV, Host, domain_xml, running_host

_QUICK = {"keepalive_interval": 1, "keepalive_count": 1, "connect_timeout": 1.0, "reconnect_max": 0.5}
"""A frozen libvirtd is found after three seconds at most."""


async def _events_flow(host: Host) -> None:
    uuid = uuid4()
    await host.domains.start(await host.domains.define(domain_xml(uuid, str(uuid), security=SEV)))
    assert [event.event for event in await host.next_events(2)] == [Lifecycle.DEFINED, Lifecycle.STARTED]
    assert uuid in {guest.uuid for guest in await host.domains.guests()}


async def test_returns_by_itself_after_libvirtd_was_killed(libvirtd: PrivateLibvirtd) -> None:
    """A loss is told at once, calls then fail at once, and the return brings events and calls back."""
    async with running_host(uri=libvirtd.uri, **_QUICK) as host:
        assert await host.next_change()
        await _events_flow(host)
        old = host.hypervisor.link
        killed = time.monotonic()
        libvirtd.kill()
        assert not await host.next_change()
        assert time.monotonic() - killed < 1
        assert not host.hypervisor.is_up
        with pytest.raises(HypervisorUnavailable):
            await host.domains.guests()
        libvirtd.start()
        started = time.monotonic()
        assert await host.next_change()
        assert time.monotonic() - started < 5
        assert host.hypervisor.link is not old
        assert not host.hypervisor.link.facts.known
        await _events_flow(host)
        assert host.changes.empty()


async def test_connects_to_a_libvirtd_that_comes_later(libvirtd: PrivateLibvirtd) -> None:
    """The order in which libvirtd and the agent start does not matter."""
    libvirtd.kill()
    async with running_host(uri=libvirtd.uri, **_QUICK) as host:
        with pytest.raises(HypervisorUnavailable):
            await host.hypervisor.wait_up(0.3)
        assert host.hypervisor.reason
        libvirtd.start()
        await host.hypervisor.wait_up(PATIENCE)
        assert host.hypervisor.reason is None
        await _events_flow(host)


async def test_finds_a_frozen_libvirtd_and_recovers_with_it(libvirtd: PrivateLibvirtd) -> None:
    """A call in flight ends in bounded time, no thread stays lost, and all works again after the thaw."""
    async with running_host(uri=libvirtd.uri, **_QUICK) as host:
        assert await host.next_change()
        libvirtd.freeze()
        frozen = time.monotonic()
        with pytest.raises(HypervisorUnavailable, match=r"lost \(.*during the call"):
            await host.domains.guests()
        assert time.monotonic() - frozen < 5
        assert not await host.next_change()
        assert host.hypervisor.thread_alive
        async with asyncio.timeout(PATIENCE):
            while "no answer" not in (host.hypervisor.reason or ""):  # noqa: ASYNC110 - attempts are not announced
                await asyncio.sleep(0.05)
        libvirtd.thaw()
        assert await host.next_change()
        await _events_flow(host)
        assert host.hypervisor.overdue_calls == 0


async def test_a_call_that_meets_a_frozen_libvirtd_keeps_its_own_limit(libvirtd: PrivateLibvirtd) -> None:
    """The caller waits no longer than ``call_timeout``, and keepalive then frees the thread."""
    async with running_host(uri=libvirtd.uri, **_QUICK | {"call_timeout": 0.2}) as host:
        assert await host.next_change()
        libvirtd.freeze()
        with pytest.raises(HypervisorUnavailable, match=r"within 0\.2 s"):
            await host.domains.guests()
        assert host.hypervisor.overdue_calls == 1
        assert not await host.next_change()
        async with asyncio.timeout(PATIENCE):
            while host.hypervisor.overdue_calls:  # noqa: ASYNC110 - the count is all there is to see
                await asyncio.sleep(0.05)


async def test_ends_in_bounded_time_while_libvirtd_is_frozen(libvirtd: PrivateLibvirtd) -> None:
    """Neither an open connection nor a hanging attempt keeps the agent from stopping."""
    async with running_host(uri=libvirtd.uri, connect_timeout=0.2, reconnect_max=0.1) as host:
        assert await host.next_change()
        libvirtd.freeze()
        begun = time.monotonic()
        await host.stop()
        assert time.monotonic() - begun < 5
    async with running_host(uri=libvirtd.uri, connect_timeout=0.2, reconnect_max=0.1) as host:
        with pytest.raises(HypervisorUnavailable):
            await host.hypervisor.wait_up(2)
        assert len([thread for thread in threading.enumerate() if thread.name.startswith("libvirt-open")]) <= 6
        begun = time.monotonic()
        await host.stop()
        assert time.monotonic() - begun < 5
    libvirtd.thaw()


async def test_reconnecting_leaks_nothing(libvirtd: PrivateLibvirtd) -> None:
    """After many losses the process has the descriptors and threads that it had after the first."""
    async with running_host(uri=libvirtd.uri, reconnect_max=0.1) as host:
        counts = []
        for _ in range(6):
            assert await host.next_change()
            await _events_flow(host)
            counts.append((len(os.listdir("/proc/self/fd")), threading.active_count()))  # noqa: PTH208 - a number only
            libvirtd.kill()
            assert not await host.next_change()
            libvirtd.start()
    assert counts[-1] <= counts[1]
