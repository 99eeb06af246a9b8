"""What a daemon is at when it dies: each brings it there, and says what must be told in the end."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import UUID, uuid4

from sev_agent.domain.identity import domain_name
from sev_agent.openstack.placement import Allocation
from tests.e2e.waiting import eventually
from tests.faults.invariants import bridge_of
from tests.faults.stage import Stage
from tests.images import make_qcow2

_NOTED_SECONDS = 30.0


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
    return await _failing(stage)


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
    return await _changed(stage, "stop_instance", "stopped", "stop.end")


async def start(stage: Stage, scratch: Path) -> Told:
    return await _changed(stage, "start_instance", "active", "start.end", from_stopped=True)


async def reboot(stage: Stage, scratch: Path) -> Told:
    return await _changed(stage, "reboot_instance", "active", "reboot.end", reboot_type="SOFT")


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
    await stage.power("start_instance", uuid, "stopped")
    return Told(uuid, "start.error")


async def redefine(stage: Stage, scratch: Path) -> Told:
    """A start of a guest whose domain somebody has undefined."""
    await stage.ready_to_die()
    uuid = await stage.build()
    await _destroyed(stage, uuid)
    assert (await stage.cloud.virsh("undefine", domain_name(uuid), "--keep-nvram")).status == 0
    await stage.power("start_instance", uuid, "active")
    return Told(uuid, "start.end")


async def hard_reboot(stage: Stage, scratch: Path) -> Told:
    return await _changed(stage, "reboot_instance", "active", "reboot.end", reboot_type="HARD")


async def hard_reboot_of_stopped(stage: Stage, scratch: Path) -> Told:
    return await _changed(stage, "reboot_instance", "active", "reboot.end", from_stopped=True, reboot_type="HARD")


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
    await _ready_to_die_beside_nova(stage)
    return await _building(stage)


async def fail_beside_nova(stage: Stage, scratch: Path) -> Told:
    """As ``fail``, of a build that was claimed from Nova's tree: nobody but us would give that back."""
    await _ready_to_die_beside_nova(stage)
    return await _failing(stage)


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


async def _failing(stage: Stage) -> Told:
    uuid = await stage.begin(networks=[{"type": "bridge", "source": "missing"}])
    stage.asked[uuid] = {"error"}
    return Told(uuid, "create.error")


async def _ready_to_die_beside_nova(stage: Stage) -> None:
    await stage.up()
    stage.settings = {"placement__mode": "beside-nova", "placement__nova_node": stage.cloud.host.name}
    await stage.ready_to_die()


async def _changed(
    stage: Stage, method: str, state: str, event: str, *, from_stopped: bool = False, **arguments: str
) -> Told:
    await stage.ready_to_die()
    uuid = await stage.build()
    if from_stopped:
        await _destroyed(stage, uuid)
    await stage.power(method, uuid, state, **arguments)
    return Told(uuid, event)


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
