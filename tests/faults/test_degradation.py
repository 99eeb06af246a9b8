"""Each service away, hanging or talking nonsense: the daemon says so, does what it can, and catches up by itself."""

import asyncio
import json
import statistics
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from uuid import UUID

import pytest

from sev_agent.domain.identity import domain_name
from tests.e2e.ear import Ear
from tests.e2e.waiting import eventually
from tests.faults.conftest import World
from tests.faults.services import Leaned
from tests.faults.tally import Tally

pytestmark = pytest.mark.asyncio(loop_scope="session")

BACK_SECONDS = 10.0
"""From a service's return until all is done that waited for it; at the median, as a busy machine delays any of them."""

PATIENCE = 60.0
NOTICE_SECONDS = 30.0
_NEVER = 86_400

_QUICK: Mapping[str, Any] = {
    "reconciler__interval": _NEVER,
    "reconciler__jitter": 0,
    "encryption__watch_interval": 1,
    "health__interval": 1,
    "hypervisor__keepalive_interval": 1,
    "hypervisor__keepalive_count": 3,
    "placement__timeout": 2,
    "glance__timeout": 2,
    "auth__timeout": 2,
}
"""Faults are noticed within seconds: what is tried here is what follows from it. Returns are noticed as ever.

The minutely comparison never comes: whatever catches up does so because the service is back, and not by the minute.
"""


def _quick(world: World) -> dict[str, Any]:
    return {**_QUICK, "messaging__url": f"{world.usual['messaging__url']}?heartbeat=1"}


Act = Callable[[World, Leaned], Awaitable[None]]


async def _goes(world: World, service: Leaned) -> None:
    if service is Leaned.LIBVIRT:
        await world.services.kill(service)
    else:
        world.proxies.before(service).refuse()


async def _hangs(world: World, service: Leaned) -> None:
    if service is Leaned.LIBVIRT:
        await world.services.freeze(service)
    else:
        world.proxies.before(service).freeze()


async def _lies(world: World, service: Leaned) -> None:
    match service:
        case Leaned.LIBVIRT:
            await world.services.impersonate_libvirt(_GARBAGE)
        case Leaned.BROKER:
            world.proxies.broker.answer(_GARBAGE)
        case _:
            world.proxies.before(service).answer(NONSENSE["a web page"])


async def _returns(world: World, service: Leaned) -> None:
    if service is Leaned.LIBVIRT:
        await world.services.heal()
    else:
        world.proxies.before(service).heal()


TROUBLES: Mapping[str, Act] = {"away": _goes, "hanging": _hangs, "talking nonsense": _lies}


@pytest.fixture(params=TROUBLES)
def trouble(request: pytest.FixtureRequest) -> Act:
    return TROUBLES[request.param]


@pytest.fixture(params=["away", "hanging"])
def silence(request: pytest.FixtureRequest) -> Act:
    return TROUBLES[request.param]


@pytest.fixture(params=list(Leaned))
def service(request: pytest.FixtureRequest) -> Leaned:
    return Leaned(request.param)


def _json(body: str, *, length: int | None = None) -> bytes:
    return _answer("200 OK", "application/json", body, length=length)


def _answer(status: str, kind: str, body: str, *, length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {size}\r\nX-Subject-Token: x\r\n"
    return f"{head}Connection: close\r\n\r\n{body}".encode()


_GARBAGE = b"\xff\xff\xff\xff\x01\x00\x00\x00" + bytes(range(256))

NONSENSE: Mapping[str, bytes] = {
    "a web page": _answer("200 OK", "text/html", "<html><h1>It works!</h1></html>"),
    "half a document": _json('{"resource_providers": [{"uuid": "4', length=500),
    "other types": _json('{"token": 7, "images": "none", "resource_providers": {}, "allocation_requests": [1, null]}'),
    "server errors": _answer("500 Internal Server Error", "text/html", "<html>Oops</html>"),
    "no HTTP": b"\x00\xff\x13SSH-2.0-OpenSSH_9.2\r\n",
}


async def test_away_at_the_start(world: World, service: Leaned, trouble: Act, ear: Ear) -> None:
    """A daemon that starts without a service stays up, names it, and works when it is back, without being told."""
    assert await world.agent.stop() == 0
    await trouble(world, service)
    try:
        await world.agent.launch(**{**world.usual, **_quick(world)})
        await _says_down(world, service)
    finally:
        world.note()
        returned = time.monotonic()
        await _returns(world, service)
    await _caught_up(world)
    world.tally.returns.append(time.monotonic() - returned)
    await world.build()
    await world.hold()


async def test_goes_and_comes_back(world: World, service: Leaned, silence: Act, ear: Ear) -> None:
    """A service that goes is named; what can be done without it is done, the rest when it is back, by itself."""
    await world.have(**_quick(world))
    guest = await world.build()
    await silence(world, service)
    try:
        await _says_down(world, service)
        done = await _WITHOUT[service](world, guest, ear)
    finally:
        world.note()
        returned = time.monotonic()
        await _returns(world, service)
    await _caught_up(world)
    await done()
    world.tally.returns.append(time.monotonic() - returned)
    await world.hold()


@pytest.mark.parametrize("nonsense", NONSENSE)
async def test_nonsense(world: World, nonsense: str) -> None:
    """Placement, Keystone and Glance that answer nonsense are each named; the daemon lives, and goes on after it."""
    await world.have(**_quick(world))
    guest = await world.build()
    liars = (Leaned.PLACEMENT, Leaned.KEYSTONE, Leaned.GLANCE)
    try:
        for liar in liars:
            world.proxies.before(liar).answer(NONSENSE[nonsense])
        for liar in liars:
            await _says_down(world, liar)
        failing = await world.begin()
        # What it has claimed can only be given back when Placement makes sense again; then it is told.
        await eventually(lambda: _fails(world, failing), within=NOTICE_SECONDS, what="the build fails")
        await world.delete(guest)
    finally:
        world.note()
        returned = time.monotonic()
        for liar in liars:
            world.proxies.before(liar).heal()
    await _caught_up(world)
    await world.cloud.gone(guest)
    world.tally.returns.append(time.monotonic() - returned)
    assert (await world.hold())[failing] == "error"


async def test_broker_talks_nonsense(world: World) -> None:
    """A RabbitMQ that answers garbage is named as down; the daemon lives, and works after it."""
    await world.have(**_quick(world))
    await _lies(world, Leaned.BROKER)
    try:
        await _says_down(world, Leaned.BROKER)
    finally:
        world.note()
        returned = time.monotonic()
        world.proxies.broker.heal()
    await _caught_up(world)
    world.tally.returns.append(time.monotonic() - returned)
    await world.build()
    await world.hold()


async def test_soon_enough(tally: Tally) -> None:
    """What waited for a service was done within ten seconds of its return, at the median of all the tests here."""
    assert not tally.returns or statistics.median(tally.returns) < BACK_SECONDS


async def _without_libvirt(world: World, guest: UUID, ear: Ear) -> Callable[[], Awaitable[None]]:
    """Questions are answered; work waits in its queue."""
    view = await world.cloud.view(guest)
    assert view is not None
    assert view["state"] == "active"
    waiting = await world.begin()

    async def done() -> None:
        await ear.hear(waiting, "create.end")
        world.asked[waiting] = {"active"}

    return done


async def _without_broker(world: World, guest: UUID, ear: Ear) -> Callable[[], Awaitable[None]]:
    """Placement goes on following what runs; what is to be told waits."""
    assert (await world.cloud.virsh("destroy", domain_name(guest))).status == 0
    world.asked[guest] = {"stopped"}
    await eventually(lambda: _released(world), within=PATIENCE, what="the slot is released")

    async def done() -> None:
        await ear.hear(guest, "stop.end")

    return done


async def _without_placement(world: World, guest: UUID, ear: Ear) -> Callable[[], Awaitable[None]]:
    """A guest is stopped; its slot is given back later, and a start waits for one."""
    await world.power("stop_instance", guest, "stopped")
    await ear.hear(guest, "stop.end")
    await world.power("start_instance", guest, "active")

    async def done() -> None:
        await ear.hear(guest, "start.end")

    return done


async def _without_keystone(world: World, guest: UUID, ear: Ear) -> Callable[[], Awaitable[None]]:
    """The token is still good: guests are built and deleted as ever."""
    await world.build()
    await world.delete(guest)
    await world.cloud.gone(guest)
    return _nothing


async def _without_glance(world: World, guest: UUID, ear: Ear) -> Callable[[], Awaitable[None]]:
    """Guests are stopped, started and deleted; a build fails, and says that Glance is away."""
    await world.power("reboot_instance", guest, "active", reboot_type="HARD")
    await ear.hear(guest, "reboot.end")
    failing = await world.begin()
    fault: Any = (await ear.hear(failing, "create.error")).payload["fault"]
    assert "glance" in fault["message"]
    assert fault["remedy"]
    world.asked[failing] = {"error"}

    async def done() -> None:
        await world.build()

    return done


async def _nothing() -> None:
    pass


_WITHOUT: Mapping[Leaned, Callable[[World, UUID, Ear], Awaitable[Callable[[], Awaitable[None]]]]] = {
    Leaned.LIBVIRT: _without_libvirt,
    Leaned.BROKER: _without_broker,
    Leaned.PLACEMENT: _without_placement,
    Leaned.KEYSTONE: _without_keystone,
    Leaned.GLANCE: _without_glance,
}


async def _fails(world: World, uuid: UUID) -> bool:
    view = await world.cloud.view(uuid)
    return view is not None and view["state"] in {"failing", "error"}


async def _released(world: World) -> bool:
    return await world.cloud.slots_used() == 0


def _stir(world: World) -> None:
    """Change something of the host that counts for nothing: the daemon compares, as after every change of it."""
    path = world.cloud.host.platform_root / "sys/devices/system/cpu/smt/active"
    path.parent.mkdir(parents=True, exist_ok=True)
    before = path.read_text().strip() if path.exists() else "0"
    path.write_text("1" if before == "0" else "0")


async def _says_down(world: World, service: Leaned) -> None:
    """Wait until /readyz and the metrics name the service; the daemon is alive meanwhile."""

    async def down() -> str:
        status, text = await world.agent.get("/readyz")
        condition = json.loads(text)["dependencies"][service.value] if text else {"up": True}
        assert status in {0, 200, 503}
        return "" if condition["up"] or condition["reason"] == "not connected yet" else str(condition["reason"])

    if service is Leaned.PLACEMENT:
        await asyncio.to_thread(_stir, world)
    await eventually(down, within=NOTICE_SECONDS, what=f"{service} is said to be down")
    assert (await world.agent.get("/readyz"))[0] == 503
    assert (await world.agent.get("/healthz"))[0] == 200
    samples = await world.agent.metrics()
    assert samples("sev_agent_dependency_up", dependency=service.value) == 0
    assert samples("sev_agent_ready") == 0


async def _caught_up(world: World) -> None:
    pid = world.agent.pid
    await world.works(within=PATIENCE)
    assert world.agent.is_running
    assert world.agent.pid == pid
