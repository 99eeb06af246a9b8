"""SIGKILL of the daemon at every boundary between two steps: what was accepted ends once, and nothing is left over."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from sev_agent.crash_points import ABOVE_HOSTS, CrashPoint
from tests.e2e.cloud import Cloud
from tests.e2e.ear import Ear
from tests.e2e.waiting import eventually
from tests.faults import scenarios
from tests.faults.scenarios import Scenario
from tests.faults.services import Between, Services
from tests.faults.stage import Stage
from tests.faults.tally import Tally

pytestmark = pytest.mark.asyncio(loop_scope="session")

P = CrashPoint

_KEPT_SECONDS = 30.0

CASES: dict[Scenario, tuple[P | tuple[P, int], ...]] = {
    scenarios.build: (
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
    scenarios.new_image: (P.IMAGE_AFTER_DOWNLOAD, P.IMAGE_BEFORE_PUBLISH, P.IMAGE_AFTER_PUBLISH),
    scenarios.own_kernel: (
        P.BUILD_BEFORE_KERNEL,
        P.BUILD_AFTER_KERNEL,
        P.IMAGE_BEFORE_PUBLISH,
        (P.IMAGE_BEFORE_PUBLISH, 2),
    ),
    scenarios.unheard: (P.OUTBOX_BEFORE_COMMIT, P.OUTBOX_AFTER_COMMIT),
    scenarios.fail: (
        P.FAIL_BEFORE_SAVE,
        P.FAIL_AFTER_SAVE,
        P.UNDO_BEFORE_DESTROY,
        P.UNDO_AFTER_UNDEFINE,
        P.UNDO_AFTER_RELEASE,
        P.CONCLUDE_BEFORE_SAVE,
        P.CONCLUDE_AFTER_SAVE,
    ),
    scenarios.hand_back: (P.FAIL_AFTER_SAVE, P.RESCHEDULE_BEFORE_CAST, P.RESCHEDULE_AFTER_CAST, P.CONCLUDE_BEFORE_SAVE),
    scenarios.delete: (
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
    scenarios.start: (
        (P.ACCEPT_AFTER_SAVE, 2),
        P.POWER_AFTER_NOTICE,
        P.POWER_BEFORE_CLAIM,
        P.POWER_AFTER_CLAIM,
        P.POWER_AFTER_START,
        (P.CONCLUDE_BEFORE_SAVE, 3),
    ),
    scenarios.stop: (
        (P.ACCEPT_AFTER_SAVE, 2),
        P.POWER_AFTER_NOTICE,
        P.POWER_AFTER_BUTTON,
        P.POWER_AFTER_END,
        P.POWER_AFTER_REST,
        (P.CONCLUDE_AFTER_SAVE, 2),
    ),
    scenarios.reboot: (
        P.POWER_AFTER_NOTICE,
        P.POWER_AFTER_END,
        P.REBOOT_BEFORE_SAVE,
        P.REBOOT_AFTER_SAVE,
        P.POWER_AFTER_START,
        (P.CONCLUDE_BEFORE_SAVE, 2),
    ),
    scenarios.delete_during_build: ((P.ACCEPT_AFTER_SAVE, 2),),
    scenarios.delete_during_stop: ((P.ACCEPT_AFTER_SAVE, 3), P.UNDO_AFTER_DESTROY),
    scenarios.delete_during_reboot: ((P.ACCEPT_AFTER_SAVE, 3),),
    scenarios.failing_start: (P.POWER_AFTER_CLAIM, (P.CONCLUDE_BEFORE_SAVE, 3)),
    scenarios.redefine: (P.POWER_AFTER_REDEFINE,),
    scenarios.hard_reboot: (P.POWER_AFTER_END, P.REBOOT_AFTER_SAVE),
    scenarios.hard_reboot_of_stopped: (P.POWER_AFTER_CLAIM, P.POWER_AFTER_START),
    scenarios.observe: ((P.CONCLUDE_BEFORE_SAVE, 2),),
    scenarios.refuse: (P.REFUSAL_BEFORE_DEAD_LETTER, P.REFUSAL_AFTER_DEAD_LETTER, P.REFUSAL_AFTER_NOTICE),
    scenarios.reconcile: (
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
    scenarios.register: (P.PROVIDER_AFTER_CREATE, (P.PROVIDER_AFTER_CREATE, 2)),
    scenarios.lose_slots: (P.PROVIDER_AFTER_DELETE,),
    scenarios.lose_held_slots: (P.PROVIDER_AFTER_RESERVE,),
    scenarios.beside_nova: (P.LEDGER_AFTER_WRITE,),
    scenarios.fail_beside_nova: (P.LEDGER_BEFORE_RELEASE,),
    scenarios.host_boot: (P.HOST_BOOT_BEFORE_START, P.HOST_BOOT_AFTER_START),
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
    await stage.show_log()
    await stage.heal()
    for uuid in await stage.delete_all():
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
    await scenarios.refuse(stage, Path())
    await stage.died()
    await stage.up()

    letters = await eventually(stage.cloud.dead_letters, within=_KEPT_SECONDS, what="the message is kept")
    assert [letter.headers["x-sev-agent-code"] for letter in letters] == ["instance.not_found"]
