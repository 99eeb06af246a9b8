"""SIGKILL of the daemon at every boundary between two steps: what was accepted ends once, and nothing is left over."""

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import UUID, uuid4

import pytest
import pytest_asyncio

from sev_agent.crash_points import ABOVE_HOSTS, VARIABLE, CrashPoint
from sev_agent.domain.identity import domain_name
from sev_agent.openstack.placement import Allocation
from tests.e2e.cloud import Cloud
from tests.e2e.ear import Ear
from tests.e2e.waiting import eventually
from tests.faults.conftest import World
from tests.faults.invariants import bridge_of
from tests.faults.services import Between, Services
from tests.faults.tally import Tally
from tests.images import make_qcow2

pytestmark = pytest.mark.asyncio(loop_scope="session")

P = CrashPoint

_ARMED = VARIABLE.removeprefix("SEV_AGENT_").lower()
_DEATH_SECONDS = 60.0
_NOTED_SECONDS = 30.0
_LOG_LINES = 80

_USUAL = {"builds__guest_shutdown_timeout": "1"}
"""The guests here have no system that would heed its power button."""


class Stage(World):
    """What each scenario plays on. ``doomed`` is what the daemon's next life is told, where it has to die.

    ``settings`` are those of all its lives, beside the usual ones.
    """

    doomed: str = ""
    settings: Mapping[str, str] = _USUAL

    async def up(self) -> None:
        """A daemon that does not die."""
        await self.start(**self.settings)

    async def doom(self) -> None:
        """A daemon that dies where it shall, perhaps before it is ready."""
        if self.agent.is_running:
            assert await self.agent.stop() == 0
        await self.agent.launch(**{**self.usual, **self.settings, _ARMED: self.doomed})

    async def ready_to_die(self) -> None:
        """A daemon that dies where it shall, and is ready before that."""
        await self.doom()
        await self.agent.wait_ready()

    async def died(self) -> None:
        status = await self.agent.wait(within=_DEATH_SECONDS)
        assert status == -signal.SIGKILL, f"exit status {status}:\n{self.agent.said()[-3000:]}"

    async def ask(self, method: str, uuid: UUID, state: str, **arguments: str) -> None:
        self.asked[uuid] = {state}
        await self.cloud.cast(method, instance_uuid=str(uuid), **arguments)


@dataclass(frozen=True, slots=True)
class Told:
    """The notification that has to be heard of what was asked for."""

    uuid: UUID | str
    event: str


Scenario = Callable[[Stage, Path], Awaitable[Told | None]]
"""Brings the daemon to where it dies, and returns what must be told in the end."""


async def build(stage: Stage, scratch: Path) -> Told:
    await stage.ready_to_die()
    return await _building(stage)


async def new_image(stage: Stage, scratch: Path) -> Told:
    """A build whose image is not in the cache."""
    await stage.ready_to_die()
    image = await stage.cloud.upload(make_qcow2(scratch / "new.qcow2"))
    return await _building(stage, image__id=str(image))


async def own_kernel(stage: Stage, scratch: Path) -> Told:
    """A build whose image names a kernel, which is fetched for this guest alone."""
    await stage.ready_to_die()
    (scratch / "kernel").write_bytes(bytes(16_384))
    kernel = await stage.cloud.upload(scratch / "kernel", disk_format="raw")
    image = await stage.cloud.upload(make_qcow2(scratch / "new.qcow2"), kernel_id=str(kernel))
    return await _building(stage, image__id=str(image))


async def unheard(stage: Stage, scratch: Path) -> Told:
    """A build while the broker takes nothing, so that its notifications have to be kept."""
    await stage.ready_to_die()
    request = stage.request()
    uuid = UUID(request["uuid"])
    stage.asked[uuid] = {"active"}
    await stage.cloud.order("build_and_run_instance", instance=request)
    stage.proxies.broker.freeze()
    return Told(uuid, "create.end")


async def fail(stage: Stage, scratch: Path) -> Told:
    """A build that gets as far as its start, which a missing bridge prevents."""
    await stage.ready_to_die()
    uuid = await stage.begin(networks=[{"type": "bridge", "source": "missing"}])
    stage.asked[uuid] = {"error"}
    return Told(uuid, "create.error")


async def hand_back(stage: Stage, scratch: Path) -> Told:
    """A build that a scheduler sent and that fails here: it is the lab's scheduler's again, and nothing is left."""
    await stage.ready_to_die()
    request = stage.request(networks=[{"type": "bridge", "source": "missing"}])
    uuid = UUID(request["uuid"])
    stage.asked[uuid] = {"deleted"}
    scheduling: dict[str, object] = {"forced_host": None, "tried": []}
    await stage.cloud.cast("build_and_run_instance", instance=request, scheduling=scheduling)
    return Told(uuid, "create.error")


async def delete(stage: Stage, scratch: Path) -> Told:
    await stage.ready_to_die()
    uuid = await stage.build()
    await stage.delete(uuid)
    return Told(uuid, "delete.end")


async def stop(stage: Stage, scratch: Path) -> Told:
    await stage.ready_to_die()
    uuid = await stage.build()
    await stage.ask("stop_instance", uuid, "stopped")
    return Told(uuid, "stop.end")


async def start(stage: Stage, scratch: Path) -> Told:
    await stage.ready_to_die()
    uuid = await stage.build()
    await _destroyed(stage, uuid)
    await stage.ask("start_instance", uuid, "active")
    return Told(uuid, "start.end")


async def reboot(stage: Stage, scratch: Path) -> Told:
    await stage.ready_to_die()
    uuid = await stage.build()
    await stage.ask("reboot_instance", uuid, "active", reboot_type="SOFT")
    return Told(uuid, "reboot.end")


async def delete_during_build(stage: Stage, scratch: Path) -> Told:
    """A deletion that ends a build, which waits for Glance."""
    await stage.ready_to_die()
    stage.proxies.glance.freeze()
    uuid = await stage.begin()
    await _seen_as(stage, uuid, "building")
    await stage.delete(uuid)
    return Told(uuid, "delete.end")


async def delete_during_stop(stage: Stage, scratch: Path) -> Told:
    """A deletion that does not wait for the guest to shut itself down."""
    return await _deleted_during(stage, "stop_instance", "stopping")


async def delete_during_reboot(stage: Stage, scratch: Path) -> Told:
    """As ``delete_during_stop``, of a reboot."""
    return await _deleted_during(stage, "reboot_instance", "rebooting", reboot_type="SOFT")


async def failing_start(stage: Stage, scratch: Path) -> Told:
    """A start from stopped that takes a slot, and that libvirt then refuses: somebody took the guest's bridge away."""
    await stage.ready_to_die()
    uuid = await stage.build()
    await _destroyed(stage, uuid)
    known = await stage.cloud.virsh("dumpxml", "--inactive", domain_name(uuid))
    changed = known.output.replace(bridge_of(stage.cloud), "missing")
    assert changed != known.output
    (scratch / "domain.xml").write_text(changed)
    assert (await stage.cloud.virsh("define", str(scratch / "domain.xml"))).status == 0
    await stage.ask("start_instance", uuid, "stopped")
    return Told(uuid, "start.error")


async def redefine(stage: Stage, scratch: Path) -> Told:
    """A start of a guest whose domain somebody has undefined."""
    await stage.ready_to_die()
    uuid = await stage.build()
    await _destroyed(stage, uuid)
    assert (await stage.cloud.virsh("undefine", domain_name(uuid), "--keep-nvram")).status == 0
    await stage.ask("start_instance", uuid, "active")
    return Told(uuid, "start.end")


async def hard_reboot(stage: Stage, scratch: Path) -> Told:
    await stage.ready_to_die()
    uuid = await stage.build()
    await stage.ask("reboot_instance", uuid, "active", reboot_type="HARD")
    return Told(uuid, "reboot.end")


async def hard_reboot_of_stopped(stage: Stage, scratch: Path) -> Told:
    await stage.ready_to_die()
    uuid = await stage.build()
    await _destroyed(stage, uuid)
    await stage.ask("reboot_instance", uuid, "active", reboot_type="HARD")
    return Told(uuid, "reboot.end")


async def observe(stage: Stage, scratch: Path) -> Told:
    """A guest that somebody ends by libvirt."""
    await stage.ready_to_die()
    uuid = await stage.build()
    stage.asked[uuid] = {"stopped"}
    assert (await stage.cloud.virsh("destroy", domain_name(uuid))).status == 0
    return Told(uuid, "stop.end")


async def refuse(stage: Stage, scratch: Path) -> Told:
    """A message that asks for what cannot be."""
    await stage.ready_to_die()
    uuid = uuid4()
    await stage.cloud.cast("start_instance", instance_uuid=str(uuid))
    return Told(uuid, "start.error")


async def reconcile(stage: Stage, scratch: Path) -> None:
    """The first comparison of a daemon that finds everything wrong in Placement."""
    await stage.up()
    guests = [await stage.build() for _ in range(2)]
    assert await stage.agent.stop() == 0
    placement = stage.cloud.placement
    for guest in guests:
        held = await placement.allocation(guest)
        assert held is not None
        await placement.put_allocation(guest, replace(held, resources={}))
    root, child = await stage.cloud.root(), await stage.cloud.child()
    for _ in range(2):
        await placement.put_allocation(uuid4(), _surplus(root.uuid))
    generation, inventories = await placement.inventories(child.uuid)
    wrong = {name: replace(inventory, total=inventory.total + 7) for name, inventory in inventories.items()}
    await placement.set_inventories(child.uuid, generation, wrong)
    generation, traits = await placement.traits(root.uuid)
    await placement.set_traits(root.uuid, generation, traits - {"CUSTOM_NODE_TYPE_SEV"})
    await stage.doom()


async def register(stage: Stage, scratch: Path) -> None:
    """The start on a host that Placement does not know."""
    placement = stage.cloud.placement
    root = await placement.find_provider(stage.cloud.host.name)
    if root is not None:
        for provider in sorted(await placement.tree(root.uuid), key=lambda provider: provider.uuid == root.uuid):
            await placement.delete_provider(provider.uuid)
    await stage.doom()


async def lose_slots(stage: Stage, scratch: Path) -> None:
    """The start on a host whose kernel has lost SEV, where no guest holds a slot."""
    await stage.up()
    await _die_without_sev(stage)


async def lose_held_slots(stage: Stage, scratch: Path) -> None:
    """As ``lose_slots``, with a guest."""
    await stage.up()
    await stage.build()
    await _die_without_sev(stage)


async def beside_nova(stage: Stage, scratch: Path) -> Told:
    """A build that is claimed from Nova's tree: the lab host's own looks the same to the daemon."""
    await stage.up()
    stage.settings = {**_USUAL, "placement__mode": "beside-nova", "placement__nova_node": stage.cloud.host.name}
    await stage.ready_to_die()
    return await _building(stage)


async def host_boot(stage: Stage, scratch: Path) -> Told:
    """The start after the host itself was restarted."""
    await stage.up()
    uuid = await stage.build(auto_start=True)
    assert await stage.agent.stop() == 0
    assert (await stage.cloud.virsh("destroy", domain_name(uuid))).status == 0
    boot_id = stage.cloud.host.platform_root / "proc/sys/kernel/random/boot_id"
    boot_id.parent.mkdir(parents=True, exist_ok=True)
    boot_id.write_text(f"{uuid4()}\n")
    await stage.doom()
    return Told(uuid, "start.end")


async def _building(stage: Stage, **changes: str) -> Told:
    uuid = await stage.begin(**changes)
    stage.asked[uuid] = {"active"}
    return Told(uuid, "create.end")


async def _deleted_during(stage: Stage, method: str, state: str, **arguments: str) -> Told:
    stage.settings = {"builds__guest_shutdown_timeout": "60"}
    await stage.ready_to_die()
    uuid = await stage.build()
    await stage.cloud.cast(method, instance_uuid=str(uuid), **arguments)
    await _seen_as(stage, uuid, state)
    await stage.delete(uuid)
    return Told(uuid, "delete.end")


async def _die_without_sev(stage: Stage) -> None:
    parameter = stage.cloud.host.platform_root / "sys/module/kvm_amd/parameters/sev"
    was = parameter.read_text()
    parameter.write_text("N\n")
    try:
        await stage.doom()
        await stage.died()
    finally:
        parameter.write_text(was)


async def _destroyed(stage: Stage, uuid: UUID) -> None:
    """End the guest by libvirt, and wait until the daemon knows it."""
    assert (await stage.cloud.virsh("destroy", domain_name(uuid))).status == 0

    await _seen_as(stage, uuid, "stopped")


async def _seen_as(stage: Stage, uuid: UUID, state: str) -> None:
    async def is_so() -> bool:
        view = await stage.cloud.view(uuid)
        return view is not None and view["state"] == state

    await eventually(is_so, within=_NOTED_SECONDS, what=f"instance {uuid} is known to be {state}")


def _surplus(provider: UUID) -> Allocation:
    return Allocation(
        resources={provider: {"DISK_GB": 1}},
        project_id="nobody",
        user_id="nobody",
        consumer_type="INSTANCE",
        consumer_generation=None,
    )


CASES: dict[Scenario, tuple[P | tuple[P, int], ...]] = {
    build: (
        P.REQUEST_BEFORE_HANDLER,
        P.REQUEST_BEFORE_REPLY,
        P.REQUEST_BEFORE_ACK,
        P.REQUEST_AFTER_ACK,
        P.ACCEPT_BEFORE_SAVE,
        P.ACCEPT_AFTER_SAVE,
        P.BUILD_AFTER_NOTICE,
        P.BUILD_BEFORE_IMAGE,
        P.BUILD_AFTER_IMAGE,
        P.BUILD_BEFORE_CLAIM,
        P.BUILD_AFTER_CLAIM,
        P.BUILD_BEFORE_CACHE,
        P.BUILD_AFTER_CACHE,
        P.BUILD_BEFORE_DISK,
        P.DISK_BEFORE_PUBLISH,
        P.BUILD_AFTER_DISK,
        P.BUILD_BEFORE_CONFIG_DRIVE,
        P.BUILD_AFTER_CONFIG_DRIVE,
        P.BUILD_BEFORE_NVRAM,
        P.BUILD_AFTER_NVRAM,
        P.BUILD_BEFORE_DEFINE,
        P.BUILD_AFTER_DEFINE,
        P.BUILD_BEFORE_START,
        P.BUILD_AFTER_START,
        P.CONCLUDE_BEFORE_SAVE,
        P.CONCLUDE_AFTER_SAVE,
        P.CONCLUDE_AFTER_NOTICE,
        # The first letter is the host's own, of the generations that it can run.
        (P.OUTBOX_BEFORE_SEND, 2),
        (P.OUTBOX_AFTER_SEND, 2),
        P.OUTBOX_BEFORE_SETTLE,
        P.OUTBOX_AFTER_SETTLE,
        P.DURABLE_BEFORE_SYNC,
        # The record, then what is written side by side: config drive, NVRAM, the record with its base; its end.
        *((P.DURABLE_BEFORE_RENAME, passes) for passes in (1, 3, 5)),
        (P.DURABLE_AFTER_RENAME, 5),
    ),
    new_image: (P.IMAGE_AFTER_DOWNLOAD, P.IMAGE_BEFORE_PUBLISH, P.IMAGE_AFTER_PUBLISH),
    own_kernel: (P.BUILD_BEFORE_KERNEL, P.BUILD_AFTER_KERNEL, P.IMAGE_BEFORE_PUBLISH, (P.IMAGE_BEFORE_PUBLISH, 2)),
    unheard: (P.OUTBOX_BEFORE_COMMIT, P.OUTBOX_AFTER_COMMIT),
    fail: (
        P.FAIL_BEFORE_SAVE,
        P.FAIL_AFTER_SAVE,
        P.UNDO_BEFORE_DESTROY,
        P.UNDO_AFTER_UNDEFINE,
        P.UNDO_AFTER_RELEASE,
        P.CONCLUDE_BEFORE_SAVE,
        P.CONCLUDE_AFTER_SAVE,
    ),
    hand_back: (P.FAIL_AFTER_SAVE, P.RESCHEDULE_BEFORE_CAST, P.RESCHEDULE_AFTER_CAST, P.CONCLUDE_BEFORE_SAVE),
    delete: (
        (P.ACCEPT_AFTER_SAVE, 2),
        P.DELETE_AFTER_NOTICE,
        P.UNDO_BEFORE_DESTROY,
        P.UNDO_AFTER_DESTROY,
        P.UNDO_BEFORE_UNDEFINE,
        P.UNDO_AFTER_UNDEFINE,
        P.UNDO_BEFORE_FILES,
        P.UNDO_AFTER_FILES,
        P.UNDO_BEFORE_RELEASE,
        P.UNDO_AFTER_RELEASE,
        (P.CONCLUDE_BEFORE_SAVE, 2),
        (P.CONCLUDE_AFTER_SAVE, 2),
    ),
    start: (
        (P.ACCEPT_AFTER_SAVE, 2),
        P.POWER_AFTER_NOTICE,
        P.POWER_BEFORE_CLAIM,
        P.POWER_AFTER_CLAIM,
        P.POWER_AFTER_START,
        (P.CONCLUDE_BEFORE_SAVE, 3),
    ),
    stop: (
        (P.ACCEPT_AFTER_SAVE, 2),
        P.POWER_AFTER_NOTICE,
        P.POWER_AFTER_BUTTON,
        P.POWER_AFTER_END,
        P.POWER_AFTER_REST,
        (P.CONCLUDE_AFTER_SAVE, 2),
    ),
    reboot: (
        P.POWER_AFTER_NOTICE,
        P.POWER_AFTER_END,
        P.REBOOT_BEFORE_SAVE,
        P.REBOOT_AFTER_SAVE,
        P.POWER_AFTER_START,
        (P.CONCLUDE_BEFORE_SAVE, 2),
    ),
    delete_during_build: ((P.ACCEPT_AFTER_SAVE, 2),),
    delete_during_stop: ((P.ACCEPT_AFTER_SAVE, 3), P.UNDO_AFTER_DESTROY),
    delete_during_reboot: ((P.ACCEPT_AFTER_SAVE, 3),),
    failing_start: (P.POWER_AFTER_CLAIM, (P.CONCLUDE_BEFORE_SAVE, 3)),
    redefine: (P.POWER_AFTER_REDEFINE,),
    hard_reboot: (P.POWER_AFTER_END, P.REBOOT_AFTER_SAVE),
    hard_reboot_of_stopped: (P.POWER_AFTER_CLAIM, P.POWER_AFTER_START),
    observe: ((P.CONCLUDE_BEFORE_SAVE, 2),),
    refuse: (P.REFUSAL_BEFORE_DEAD_LETTER, P.REFUSAL_AFTER_DEAD_LETTER, P.REFUSAL_AFTER_NOTICE),
    reconcile: (
        P.RECONCILE_BEFORE_LOOK,
        P.RECONCILE_AFTER_LOOK,
        P.PROVIDER_AFTER_INVENTORY,
        P.PROVIDER_AFTER_TRAITS,
        P.RECONCILE_AFTER_PROVIDERS,
        P.RECONCILE_AFTER_PLAN,
        P.LEDGER_BEFORE_WRITE,
        P.LEDGER_AFTER_WRITE,
        (P.LEDGER_BEFORE_WRITE, 2),
        P.LEDGER_BEFORE_RELEASE,
        P.LEDGER_AFTER_RELEASE,
        P.RECONCILE_AFTER_WRITES,
    ),
    register: (P.PROVIDER_AFTER_CREATE, (P.PROVIDER_AFTER_CREATE, 2)),
    lose_slots: (P.PROVIDER_AFTER_DELETE,),
    lose_held_slots: (P.PROVIDER_AFTER_RESERVE,),
    beside_nova: (P.LEDGER_AFTER_WRITE,),
    host_boot: (P.HOST_BOOT_BEFORE_START, P.HOST_BOOT_AFTER_START),
}


def _runs() -> list[tuple[Scenario, P, int]]:
    return [
        (scenario, *point) if isinstance(point, tuple) else (scenario, point, 1)
        for scenario, points in CASES.items()
        for point in points
    ]


def _name(run: object) -> str:
    return getattr(run, "__name__", str(run))


@pytest_asyncio.fixture(loop_scope="session")
async def stage(cloud: Cloud, proxies: Between, services: Services, tally: Tally) -> AsyncIterator[Stage]:
    """A lab that is well and has no daemon; at the end it has neither daemon nor guests.

    What a deletion leaves behind would be found by the next run's invariants.
    """
    stage = Stage(cloud=cloud, agent=cloud.agent, proxies=proxies, services=services, tally=tally)
    if stage.agent.is_running:
        assert await stage.agent.stop() == 0
    stage.agent.forget_log()
    yield stage
    said = (await asyncio.to_thread(stage.agent.said)).splitlines()
    print("\n".join(said[-_LOG_LINES:]))  # noqa: T201 - pytest shows it where a test failed
    await stage.heal()
    listed = [UUID(view["uuid"]) for view in await cloud.ask("list_instances")]
    await stage.delete(*listed)
    for uuid in listed:
        await cloud.gone(uuid)
    await cloud.dead_letters()
    assert await stage.agent.stop() == 0


async def test_every_point_is_tried() -> None:
    """There is a run for every point that the code names."""
    assert {point for _, point, _ in _runs()} == set(CrashPoint) - ABOVE_HOSTS


@pytest.mark.parametrize(("scenario", "point", "passes"), _runs(), ids=_name)
async def test_killed_at(
    stage: Stage, ear: Ear, tmp_path: Path, scenario: Scenario, point: CrashPoint, passes: int
) -> None:
    """What this daemon had accepted the next one ends, as asked for and once; it tells of it, and counts right."""
    stage.doomed = f"{point}:{passes}"

    told = await scenario(stage, tmp_path)
    await stage.died()
    stage.tally.crash_points.append(point)
    stage.proxies.heal()
    await stage.up()

    await stage.hold()
    if told is not None:
        await ear.hear(told.uuid, told.event)


async def test_refused_and_killed_keeps_the_message(stage: Stage) -> None:
    """A message that was refused is kept with its reason, however the daemon died over it."""
    stage.doomed = P.REFUSAL_BEFORE_DEAD_LETTER
    await refuse(stage, Path())
    await stage.died()
    await stage.up()

    letters = await eventually(stage.cloud.dead_letters, within=_NOTED_SECONDS, what="the message is kept")
    assert [letter.headers["x-sev-agent-code"] for letter in letters] == ["instance.not_found"]
