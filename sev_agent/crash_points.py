"""The boundaries between steps, by name: at each of them a test can have the daemon die as by a loss of power."""

import functools
import os
import signal
import threading
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

VARIABLE: Final = "SEV_AGENT_CRASH_AT"
"""``<point>``, or ``<point>:<n>`` for the nth time that it is passed. Nothing but this variable arms a point."""


class CrashPoint(StrEnum):
    """A place in the work on a request or in a comparison: ``<what is at work>.<moment>``."""

    REQUEST_BEFORE_HANDLER = "request.before_handler"
    REQUEST_BEFORE_REPLY = "request.before_reply"
    REQUEST_BEFORE_ACK = "request.before_ack"
    REQUEST_AFTER_ACK = "request.after_ack"
    REFUSAL_BEFORE_DEAD_LETTER = "refusal.before_dead_letter"
    REFUSAL_AFTER_DEAD_LETTER = "refusal.after_dead_letter"
    REFUSAL_AFTER_NOTICE = "refusal.after_notice"

    ACCEPT_BEFORE_SAVE = "accept.before_save"
    ACCEPT_AFTER_SAVE = "accept.after_save"
    CONCLUDE_BEFORE_SAVE = "conclude.before_save"
    CONCLUDE_AFTER_SAVE = "conclude.after_save"
    CONCLUDE_AFTER_NOTICE = "conclude.after_notice"

    BUILD_AFTER_NOTICE = "build.after_notice"
    BUILD_BEFORE_IMAGE = "build.before_image"
    BUILD_AFTER_IMAGE = "build.after_image"
    BUILD_BEFORE_CLAIM = "build.before_claim"
    BUILD_AFTER_CLAIM = "build.after_claim"
    BUILD_BEFORE_CACHE = "build.before_cache"
    BUILD_AFTER_CACHE = "build.after_cache"
    BUILD_BEFORE_KERNEL = "build.before_kernel"
    BUILD_AFTER_KERNEL = "build.after_kernel"
    BUILD_BEFORE_DISK = "build.before_disk"
    BUILD_AFTER_DISK = "build.after_disk"
    BUILD_BEFORE_CONFIG_DRIVE = "build.before_config_drive"
    BUILD_AFTER_CONFIG_DRIVE = "build.after_config_drive"
    BUILD_BEFORE_NVRAM = "build.before_nvram"
    BUILD_AFTER_NVRAM = "build.after_nvram"
    BUILD_BEFORE_DEFINE = "build.before_define"
    BUILD_AFTER_DEFINE = "build.after_define"
    BUILD_BEFORE_START = "build.before_start"
    BUILD_AFTER_START = "build.after_start"

    IMAGE_AFTER_DOWNLOAD = "image.after_download"
    IMAGE_BEFORE_PUBLISH = "image.before_publish"
    IMAGE_AFTER_PUBLISH = "image.after_publish"
    DISK_BEFORE_PUBLISH = "disk.before_publish"

    FAIL_BEFORE_SAVE = "fail.before_save"
    FAIL_AFTER_SAVE = "fail.after_save"
    RESCHEDULE_BEFORE_CAST = "reschedule.before_cast"
    RESCHEDULE_AFTER_CAST = "reschedule.after_cast"
    DELETE_AFTER_NOTICE = "delete.after_notice"
    UNDO_BEFORE_DESTROY = "undo.before_destroy"
    UNDO_AFTER_DESTROY = "undo.after_destroy"
    UNDO_BEFORE_UNDEFINE = "undo.before_undefine"
    UNDO_AFTER_UNDEFINE = "undo.after_undefine"
    UNDO_BEFORE_FILES = "undo.before_files"
    UNDO_AFTER_FILES = "undo.after_files"
    UNDO_BEFORE_RELEASE = "undo.before_release"
    UNDO_AFTER_RELEASE = "undo.after_release"

    POWER_AFTER_NOTICE = "power.after_notice"
    POWER_BEFORE_CLAIM = "power.before_claim"
    POWER_AFTER_CLAIM = "power.after_claim"
    POWER_AFTER_REDEFINE = "power.after_redefine"
    POWER_AFTER_START = "power.after_start"
    POWER_AFTER_BUTTON = "power.after_button"
    POWER_AFTER_END = "power.after_end"
    POWER_AFTER_REST = "power.after_rest"
    REBOOT_BEFORE_SAVE = "reboot.before_save"
    REBOOT_AFTER_SAVE = "reboot.after_save"

    RECONCILE_BEFORE_LOOK = "reconcile.before_look"
    RECONCILE_AFTER_LOOK = "reconcile.after_look"
    RECONCILE_AFTER_PROVIDERS = "reconcile.after_providers"
    RECONCILE_AFTER_PLAN = "reconcile.after_plan"
    RECONCILE_AFTER_WRITES = "reconcile.after_writes"
    PROVIDER_AFTER_CREATE = "provider.after_create"
    PROVIDER_AFTER_INVENTORY = "provider.after_inventory"
    PROVIDER_AFTER_TRAITS = "provider.after_traits"
    PROVIDER_AFTER_RESERVE = "provider.after_reserve"
    PROVIDER_AFTER_DELETE = "provider.after_delete"
    LEDGER_BEFORE_WRITE = "ledger.before_write"
    LEDGER_AFTER_WRITE = "ledger.after_write"
    LEDGER_BEFORE_RELEASE = "ledger.before_release"
    LEDGER_AFTER_RELEASE = "ledger.after_release"

    OUTBOX_BEFORE_SEND = "outbox.before_send"
    OUTBOX_AFTER_SEND = "outbox.after_send"
    OUTBOX_BEFORE_COMMIT = "outbox.before_commit"
    OUTBOX_AFTER_COMMIT = "outbox.after_commit"
    OUTBOX_BEFORE_SETTLE = "outbox.before_settle"
    OUTBOX_AFTER_SETTLE = "outbox.after_settle"

    DURABLE_BEFORE_SYNC = "durable.before_sync"
    DURABLE_BEFORE_RENAME = "durable.before_rename"
    DURABLE_AFTER_RENAME = "durable.after_rename"

    HOST_BOOT_BEFORE_START = "host_boot.before_start"
    HOST_BOOT_AFTER_START = "host_boot.after_start"

    SCHEDULE_AFTER_CLAIM = "schedule.after_claim"
    SCHEDULE_AFTER_CAST = "schedule.after_cast"
    CREATE_AFTER_ROW = "create.after_row"
    CREATE_AFTER_CAST = "create.after_cast"
    NEWS_BEFORE_COMMIT = "news.before_commit"
    NEWS_AFTER_COMMIT = "news.after_commit"


ABOVE_HOSTS: Final = frozenset(
    {
        CrashPoint.SCHEDULE_AFTER_CLAIM,
        CrashPoint.SCHEDULE_AFTER_CAST,
        CrashPoint.CREATE_AFTER_ROW,
        CrashPoint.CREATE_AFTER_CAST,
        CrashPoint.NEWS_BEFORE_COMMIT,
        CrashPoint.NEWS_AFTER_COMMIT,
    }
)
"""The points of schedulers and APIs, which a host's daemon never passes."""


def reached(point: CrashPoint) -> None:
    """Die here by SIGKILL, if that is what the environment asks for; from any thread."""
    # Not an argument of each constructor: what only tests arm is no part of what the daemon is made of.
    trap = _trap()
    if trap is not None and trap.point is point:
        trap.spring()


@dataclass(slots=True)
class Trap:
    """A point that is armed, and how many passes are left until it kills."""

    point: CrashPoint
    passes: int = 1
    _guard: threading.Lock = field(default_factory=threading.Lock)

    def spring(self) -> None:
        with self._guard:
            self.passes -= 1
            if not self.passes:
                os.kill(os.getpid(), signal.SIGKILL)


def armed() -> CrashPoint | None:
    """The point that the environment arms."""
    trap = _trap()
    return trap.point if trap is not None else None


def parse(text: str) -> Trap:
    """What the variable's ``text`` asks for. Raises ``ValueError`` that says what is wrong with it."""
    name, _, count = text.partition(":")
    if name not in set(CrashPoint):
        raise ValueError(f"'{name}' is no crash point; sev_agent/crash_points.py lists them")
    if count and not (count.isdecimal() and int(count)):
        raise ValueError(f"'{count}' is no number of passes")
    return Trap(CrashPoint(name), int(count or 1))


def faults(text: str) -> list[str]:
    """What is wrong with the variable's ``text``, in the words of a configuration's faults."""
    try:
        parse(text)
    except ValueError as error:
        return [f"{VARIABLE}: {error}"]
    return []


@functools.cache
def _trap() -> Trap | None:
    text = os.environ.get(VARIABLE)
    return parse(text) if text else None
