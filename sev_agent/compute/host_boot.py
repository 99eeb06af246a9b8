"""Guests that are started again after their host was restarted: those marked so that ran when it went down."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, TypeAlias
from uuid import UUID

import structlog
from pydantic import BaseModel, ConfigDict, ValidationError

from sev_agent.compute.power_change import last_request, was_stopped_since
from sev_agent.compute.record import Record, State
from sev_agent.compute.record_store import JournalFailed, RecordStore
from sev_agent.crash_points import CrashPoint, reached
from sev_agent.durable import discard_unfinished, write_durably
from sev_agent.errors import SevAgentError, Unavailable
from sev_agent.uninterrupted import in_thread, raise_if_cancelled

log = structlog.stdlib.get_logger(__name__)

_BOOT_ID: Final = Path("proc/sys/kernel/random/boot_id")
_FILE: Final = "host-boot.json"
_RETRY_SECONDS: Final = 3.0


Start: TypeAlias = Callable[[UUID, str], Awaitable[None]]
"""Takes the instance, and the last request to it from before this boot."""


class _Boot(BaseModel):
    """The boot that this host was last seen in, and the guests that are still to be started in it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    boot_id: str
    restart: tuple[UUID, ...] = ()
    last_requests: dict[UUID, str] = {}
    """The last request to each of them before this boot: a stop that comes after it is obeyed."""


class HostBoot:
    """Starts guests again, oldest first, as far as there are slots.

    The list is made before anything else looks at the instances, and is kept on disk until it is done with: a power
    loss in between loses no guest of it. ``start`` begins the start of an instance, unless its user has stopped it
    since then, and returns when it has ended.
    """

    def __init__(self, *, platform_root: Path, state_dir: Path, store: RecordStore, start: Start) -> None:
        self._platform_root = platform_root
        self._file = state_dir / _FILE
        self._store = store
        self._start = start
        self._boot: _Boot | None = None
        self._registered = asyncio.Event()

    def prepare(self) -> None:
        """Find out whether the host was restarted since the daemon last ran. Blocks on the disk.

        Raises ``OSError`` where the file is there and cannot be read.
        """
        discard_unfinished(self._file.parent)
        present = _boot_id(self._platform_root)
        last = self._read()
        if last is None or last.boot_id != present:
            # Who was still to be started when the host went down again stands as stopped by now.
            restart = () if last is None else self._to_restart(last)
            last_requests = {record.uuid: last_request(record) for record in self._store if record.uuid in restart}
            last = _Boot(boot_id=present, restart=restart, last_requests=last_requests)
            self._write(last)
            if restart:
                log.info("host.restarted", guests=len(restart))
        self._boot = last

    def on_registered(self) -> None:
        """Note that Placement counts this host as it is: what the dead guests held has been given back."""
        self._registered.set()

    async def run(self) -> None:
        """Start what is to be started, then wait for cancellation."""
        assert self._boot is not None, "prepare comes first"
        while self._boot.restart:
            raise_if_cancelled()
            await self._registered.wait()
            uuid, *others = self._boot.restart
            reached(CrashPoint.HOST_BOOT_BEFORE_START)
            try:
                await self._start(uuid, self._boot.last_requests.get(uuid, ""))
            except (Unavailable, JournalFailed) as error:
                log.warning("host.restart.postponed", instance_uuid=str(uuid), code=error.code, error=str(error))
                await asyncio.sleep(_RETRY_SECONDS)
                continue
            except SevAgentError as error:
                log.warning("host.restart.guest_left", instance_uuid=str(uuid), code=error.code, error=str(error))
            reached(CrashPoint.HOST_BOOT_AFTER_START)
            self._boot = self._boot.model_copy(update={"restart": tuple(others)})
            await in_thread(self._write, self._boot)
        await asyncio.Event().wait()

    def _to_restart(self, last: _Boot) -> tuple[UUID, ...]:
        def waits(record: Record) -> bool:
            is_due = record.state is State.STOPPED and record.uuid in last.restart
            return is_due and not was_stopped_since(record, last.last_requests.get(record.uuid, ""))

        marked = [
            record
            for record in self._store
            if record.instance.auto_start and (record.state is State.ACTIVE or waits(record))
        ]
        return tuple(record.uuid for record in sorted(marked, key=lambda record: record.created_at))

    def _read(self) -> _Boot | None:
        try:
            return _Boot.model_validate_json(self._file.read_bytes())
        except FileNotFoundError:
            return None
        except ValidationError as error:
            log.warning("host.boot.unreadable", path=str(self._file), reason=str(error))
            return None

    def _write(self, boot: _Boot) -> None:
        try:
            write_durably(self._file, boot.model_dump_json().encode())
        except OSError as error:
            # The guests are started all the same; only another restart in between would find the list as it was.
            log.warning("host.boot.unwritten", path=str(self._file), error=str(error))


def _boot_id(root: Path) -> str:
    """The kernel's identifier of this boot: Linux, Documentation/admin-guide/sysctl/kernel.rst, random."""
    for base in (root, Path("/")):
        path = base / _BOOT_ID
        if path.exists():
            return path.read_text(encoding="ascii").strip()
    return ""
