import asyncio
import contextlib
import gc
import time
import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import libvirt  # noqa: TID251 - the tests of the package that may
import pytest

from sev_agent.errors import Unavailable
from sev_agent.hypervisor import domains as domains_module
from sev_agent.hypervisor.domains import DomainState, Guest
from sev_agent.hypervisor.errors import (
    DefineRefused,
    DomainNotFound,
    HypervisorError,
    HypervisorUnavailable,
    StartUnsettled,
)
from sev_agent.hypervisor.facts import Facts
from sev_agent.sev.generation import Generation
from tests.libvirt_host import PATIENCE, SEV, SEV_ES, SEV_SNP, Host, agent_metadata, domain_xml, running_host

_MANY = 2000


async def _guest(host: Host, uuid: UUID) -> Guest | None:
    return next((guest for guest in await host.domains.guests() if guest.uuid == uuid), None)


async def test_every_operation_may_be_repeated(host: Host) -> None:
    """Doing again what is done is a success that changes nothing."""
    uuid = uuid4()
    domains = host.domains
    assert await domains.define(domain_xml(uuid)) == uuid
    assert await domains.define(domain_xml(uuid)) == uuid
    assert await domains.start(uuid)
    assert not await domains.start(uuid)
    assert await domains.state(uuid) is DomainState.RUNNING
    await domains.shutdown(uuid)
    await domains.shutdown(uuid)
    assert await domains.state(uuid) is DomainState.SHUTOFF
    await domains.destroy(uuid)
    await domains.undefine(uuid)
    await domains.undefine(uuid)
    await domains.destroy(uuid)
    assert await domains.state(uuid) is None


@pytest.mark.parametrize("operation", ["start", "shutdown"])
async def test_a_missing_domain_is_named(host: Host, operation: str) -> None:
    """Where a domain is needed, its absence is an error of its own, with its UUID."""
    uuid = uuid4()
    with pytest.raises(DomainNotFound, match=str(uuid)) as caught:
        await getattr(host.domains, operation)(uuid)
    assert not caught.value.retryable


async def test_xml_that_libvirt_would_drop_in_silence_is_refused(host: Host) -> None:
    """An element that libvirt does not know is an error, not a guest without it."""
    with pytest.raises(DefineRefused, match="validate against schema") as caught:
        await host.domains.define(domain_xml(uuid4(), extra="<unheard-of/>"))
    assert not caught.value.retryable
    assert caught.value.remedy


async def test_a_name_that_is_taken_is_refused_by_libvirts_own_words(host: Host) -> None:
    """A second domain of the same name and another UUID is refused, and the text says by what."""
    first = uuid4()
    await host.domains.define(domain_xml(first, "taken"))
    with pytest.raises(DefineRefused, match=f"taken.*{first}"):
        await host.domains.define(domain_xml(uuid4(), "taken"))


async def test_a_start_that_has_not_ended(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """While libvirt starts a domain, neither that it runs nor that it does not is told; once it runs, all is well."""
    uuid = await host.domains.define(domain_xml(uuid4()))
    await host.domains.start(uuid)
    monkeypatch.setattr(domains_module, "_START_SECONDS", 0.0)
    with monkeypatch.context() as slow:
        _keep_starting(slow)
        for ask in (host.domains.start, host.domains.runs):
            with pytest.raises(StartUnsettled):
                await ask(uuid)

    assert not await host.domains.start(uuid)
    assert await host.domains.runs(uuid)
    await _remove(host, uuid)


async def test_a_start_that_never_ends(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """A domain that libvirt has been starting for too long is an error that tells what to do."""
    uuid = await host.domains.define(domain_xml(uuid4()))
    monkeypatch.setattr(domains_module, "_START_SECONDS", 0.0)
    monkeypatch.setattr(domains_module, "_LONGEST_START_SECONDS", 0.0)
    with monkeypatch.context() as slow:
        _keep_starting(slow)
        for ask in (host.domains.start, host.domains.runs):
            with pytest.raises(HypervisorError, match="its start has not ended", check=_is_final):
                await ask(uuid)
    await _remove(host, uuid)


async def _remove(host: Host, uuid: UUID) -> None:
    await host.domains.destroy(uuid)
    await host.domains.undefine(uuid)


async def test_an_error_keeps_no_domain(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once an error is dealt with, libvirt's domain behind it is let go, without waiting for the garbage collector."""
    uuid = await host.domains.define(domain_xml(uuid4()))
    loop, let_go = asyncio.get_running_loop(), asyncio.Event()
    watched: list[object] = []

    def fail(domain: libvirt.virDomain) -> None:
        watched.append(weakref.ref(domain, lambda _: loop.call_soon_threadsafe(let_go.set)))
        raise libvirt.libvirtError("no")

    monkeypatch.setattr(libvirt.virDomain, "create", fail)
    gc.disable()
    try:
        with contextlib.suppress(HypervisorError):
            await host.domains.start(uuid)
        assert watched
        async with asyncio.timeout(PATIENCE):
            await let_go.wait()
    finally:
        gc.enable()


def _lock_taken() -> libvirt.libvirtError:
    error = libvirt.libvirtError("cannot acquire state change lock")
    error.err = (libvirt.VIR_ERR_OPERATION_TIMEOUT, 0, "cannot acquire state change lock", 2, *[None] * 3, 0, 0)
    return error


def _is_final(error: HypervisorError) -> bool:
    return not isinstance(error, Unavailable) and bool(error.remedy)


def _keep_starting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have libvirt speak as while it starts a domain for somebody else: its lock is taken."""

    def taken(_domain: libvirt.virDomain) -> None:
        raise _lock_taken()

    starting = [libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_STARTING_UP]
    monkeypatch.setattr(libvirt.virDomain, "create", taken)
    monkeypatch.setattr(libvirt.virDomain, "state", lambda _: starting)


@pytest.mark.parametrize(
    ("security", "generation"),
    [("", None), (SEV, Generation.SEV), (SEV_ES, Generation.SEV_ES), (SEV_SNP, Generation.SEV_SNP)],
)
async def test_guests_tell_their_generation(host: Host, security: str, generation: Generation | None) -> None:
    """The generation of memory encryption is read from what libvirt says of the domain, foreign ones too."""
    uuid = uuid4()
    await host.domains.start(await host.domains.define(domain_xml(uuid, security=security)))
    assert await _guest(host, uuid) == Guest(
        uuid=uuid,
        name="guest",
        state=DomainState.RUNNING,
        generation=generation,
        metadata=None,
        vcpus=2,
        memory_mb=64,
    )


async def test_guests_know_which_domains_are_ours(host: Host) -> None:
    """Metadata of this agent makes a domain a managed one; with spoiled metadata it is a foreign one, and counts."""
    ours, foreign, spoiled = uuid4(), uuid4(), uuid4()
    await host.domains.define(domain_xml(ours, "ours", security=SEV, extra=agent_metadata(ours)))
    await host.domains.define(domain_xml(foreign, "foreign", security=SEV))
    extra = agent_metadata(spoiled, generation="none such")
    await host.domains.define(domain_xml(spoiled, "spoiled", security=SEV, extra=extra))
    found = await _guest(host, ours)
    assert found
    assert found.metadata
    assert found.metadata.uuid == ours
    assert await host.domains.is_managed(ours)
    for uuid in (foreign, spoiled):
        found = await _guest(host, uuid)
        assert found
        assert found.metadata is None
        assert found.generation is Generation.SEV
        assert not await host.domains.is_managed(uuid)
    assert not await host.domains.is_managed(uuid4())


@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_guests_know_which_domains_are_novas(host: Host, version: str) -> None:
    """A domain of Nova's is known by its metadata, and ours and nobody's are not taken for one."""
    novas, ours, nobodys = uuid4(), uuid4(), uuid4()
    mark = f"<metadata><n:instance xmlns:n='http://openstack.org/xmlns/libvirt/nova/{version}'/></metadata>"
    await host.domains.define(domain_xml(novas, "novas", security=SEV, extra=mark))
    await host.domains.define(domain_xml(ours, "ours", security=SEV, extra=agent_metadata(ours)))
    await host.domains.define(domain_xml(nobodys, "nobodys", security=SEV))

    guests = {guest.uuid: guest for guest in await host.domains.guests()}

    assert {uuid for uuid, guest in guests.items() if guest.is_novas} == {novas}


async def test_some_of_the_guests(host: Host) -> None:
    """Asked about some domains, it tells of those that there are what it tells of all."""
    ours, other, missing = uuid4(), uuid4(), uuid4()
    await host.domains.start(
        await host.domains.define(domain_xml(ours, "ours", security=SEV, extra=agent_metadata(ours)))
    )
    await host.domains.define(domain_xml(other, "other"))
    everything = await host.domains.guests()

    some = await host.domains.guests_among([ours, missing])

    assert some == tuple(guest for guest in everything if guest.uuid == ours)
    assert await host.domains.guests() == everything


async def test_guests_follow_every_change(host: Host) -> None:
    """State, size and encryption are those of now, also for a domain that was seen before."""
    uuid = uuid4()
    await host.domains.define(domain_xml(uuid))
    found = await _guest(host, uuid)
    assert found
    assert not found.is_active
    await host.domains.define(domain_xml(uuid, security=SEV, vcpu="3"))
    await host.next_events(2)
    found = await _guest(host, uuid)
    assert found
    assert (found.generation, found.vcpus) == (Generation.SEV, 3)
    await host.domains.start(uuid)
    found = await _guest(host, uuid)
    assert found
    assert found.is_active
    await host.domains.destroy(uuid)
    await host.domains.undefine(uuid)
    assert await _guest(host, uuid) is None


async def test_a_change_during_a_reading_is_not_hidden_by_it(host: Host) -> None:
    """A domain that is changed after its XML was read, but before that is remembered, is read again."""
    uuid = uuid4()
    await host.domains.define(domain_xml(uuid))
    await host.next_events(1)
    facts = host.hypervisor.link.facts
    with facts.reading() as reading:
        learnt = {guest.uuid: _fact(guest) for guest in await host.domains.guests()}
        await host.domains.define(domain_xml(uuid, vcpu="3"))
        await host.next_events(1)
        reading.keep(learnt, set(learnt))
    found = await _guest(host, uuid)
    assert found
    assert found.vcpus == 3


def _fact(guest: Guest) -> Facts:
    return Facts(generation=guest.generation, metadata=None, vcpus=guest.vcpus, memory_mb=guest.memory_mb)


async def test_a_domain_that_vanishes_while_it_is_read_is_left_out(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the listing and the reading of its XML a domain may go; the others are still told."""

    def gone(_domain: libvirt.virDomain, _flags: int = 0) -> str:
        error = libvirt.libvirtError("gone")
        error.err = (libvirt.VIR_ERR_NO_DOMAIN, 0, "gone", 2, None, None, None, 0, 0)
        raise error

    monkeypatch.setattr(libvirt.virDomain, "XMLDesc", gone)
    assert await host.domains.guests() == ()


async def test_two_thousand_guests_cost_one_call_when_nothing_changed(
    host: Host, monkeypatch: pytest.MonkeyPatch, record_property: Callable[[str, object], None]
) -> None:
    """The number of libvirt calls does not grow with the number of domains, only with the number of changes."""
    uuids = [uuid4() for _ in range(_MANY)]

    def define_all(connection: libvirt.virConnect) -> None:
        for uuid in uuids:
            connection.defineXML(domain_xml(uuid, str(uuid), security=SEV)).create()

    await host.hypervisor.act(define_all)
    await host.next_events(2 * _MANY)
    first = await _timed(host)
    calls = _count_calls(monkeypatch)
    second = await _timed(host)
    assert calls == {"getAllDomainStats": 1}
    await host.domains.destroy(uuids[7])
    await host.next_events(1)
    calls.clear()
    await host.domains.guests()
    assert calls == {"getAllDomainStats": 1, "controlInfo": 1, "XMLDesc": 1}
    record_property("guests_milliseconds", round(second * 1000, 1))
    print(f"guests() of {_MANY}: first {first * 1000:.0f} ms, then {second * 1000:.0f} ms")  # noqa: T201 - the figure


async def _timed(host: Host) -> float:
    begun = time.perf_counter()
    guests = await host.domains.guests()
    assert sum(guest.generation is Generation.SEV for guest in guests) == _MANY
    return time.perf_counter() - begun


def _count_calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count every call of every method of libvirt's connections and domains that goes to libvirt itself."""
    calls: Counter[str] = Counter()
    local = {"UUID", "name", "connect", "isAlive"}
    for kind in (libvirt.virConnect, libvirt.virDomain):
        for name, method in list(vars(kind).items()):
            if callable(method) and not name.startswith("_") and name not in local:
                monkeypatch.setattr(kind, name, _counting(calls, name, method))
    return calls


def _counting(calls: Counter[str], name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    def counted(*arguments: Any, **named: Any) -> Any:
        calls[name] += 1
        return method(*arguments, **named)

    return counted


async def test_without_a_connection_every_operation_says_so() -> None:
    """Before the first connection nothing is done, and the error is one that may be retried."""
    async with running_host(uri="test+unix:///default?socket=/nonexistent/socket") as host:
        for operation in (host.domains.guests(), host.domains.define("<domain/>"), host.domains.undefine(uuid4())):
            with pytest.raises(HypervisorUnavailable):
                await operation
