"""Notifications on their way to the broker: in order, at least once, over outages and restarts."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Final
from uuid import UUID

import structlog

from sev_agent.compute.record_store import RecordStore
from sev_agent.config import NotificationsSection
from sev_agent.crash_points import CrashPoint, reached
from sev_agent.errors import SevAgentError, Unavailable
from sev_agent.messaging import envelope
from sev_agent.messaging.envelope import Notification
from sev_agent.messaging.notifications import Notifier
from sev_agent.messaging.spool import Letter, Spool
from sev_agent.uninterrupted import in_thread, raise_if_cancelled, uninterrupted

log = structlog.stdlib.get_logger(__name__)

_RETRY_SECONDS = 1.0
_FLUSH_SECONDS = 2.0
_SAFE_SECONDS = 5.0
_GRACE_SECONDS = 0.25
"""How long a broker that is there may take for a letter before it is written down."""

_MIB: Final = 1024 * 1024


class Outbox:
    """Takes letters at once, keeps them safe, and sends them one by one as the broker takes them.

    Nothing here is waited for by a build: a letter that the broker takes at once never touches the disk; one that it
    does not take is written to the spool, together with all that came meanwhile, in one fsync.

    What must never be lost, the end or the error of an operation, is written down before that, in the record of its
    instance, by the very write that makes it true (``RecordStore.save(..., owing=letter)``): there is no instant at
    which the state has changed and the letter is nowhere. Once the letter is with the broker or in the spool, the
    record is freed of it in the background. A crash before that sends it twice, with the same ``message_id``. What a
    crash can lose is the start and the progress of an operation, in the moment before they are written down; the
    operation is resumed, and tells them again.

    So the spool's journal is only read at the start: its letters and those that records owe are sent in the order in
    which they were made. Every letter that waits is in memory too, within the bounds of ``settings``; beyond them
    the oldest letter of progress is dropped first, then the oldest. ``on_dropped`` is told of each.
    """

    def __init__(
        self,
        notifier: Notifier,
        spool: Spool,
        store: RecordStore,
        settings: NotificationsSection,
        *,
        on_dropped: Callable[[Letter], None] | None = None,
    ) -> None:
        self._notifier = notifier
        self._spool = spool
        self._store = store
        self._max_count = settings.max_count
        self._max_bytes = settings.max_mb * _MIB
        self._on_dropped = on_dropped
        self._waiting: OrderedDict[int, Letter] = OrderedDict()
        self._progress: OrderedDict[int, None] = OrderedDict()
        self._bytes = 0
        self._unsafe: dict[int, asyncio.Future[None] | None] = {}
        self._gone: list[int] = []
        self._owed_by: dict[int, UUID] = {}
        self._to_settle: list[tuple[UUID, int]] = []
        self._sequence = 0
        self._arrived = asyncio.Event()
        self._to_keep = asyncio.Event()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def open(self) -> None:
        """Find what was not told before the last end. Blocks on the disk; the records must be open.

        Raises ``OSError`` where the spool's directory cannot be used.
        """
        kept = {letter.sequence: letter for letter in self._spool.open()}
        for record in self._store:
            for letter in record.owed:
                self._owed_by[letter.sequence] = record.uuid
                if letter.sequence in kept:
                    self._settled(letter.sequence)
                else:
                    self._unsafe[letter.sequence] = None
                kept[letter.sequence] = letter
        for letter in sorted(kept.values(), key=lambda letter: letter.sequence):
            self._take(letter)
        if kept:
            log.info("outbox.recovered", letters=len(kept), of_records=len(self._unsafe))

    def letter(self, notification: Notification) -> Letter:
        """``notification`` as it will travel, the next in order."""
        self._sequence = max(time.time_ns(), self._sequence + 1)
        return Letter(
            sequence=self._sequence,
            message_id=notification.message_id,
            event_type=notification.event_type,
            priority=notification.priority,
            body=envelope.encode_notification(notification).decode("ascii"),
        )

    def post(self, letter: Letter, *, owed_by: UUID | None = None) -> None:
        """Send ``letter`` when its turn comes; the record of ``owed_by`` has it until it is safe."""
        if owed_by is not None:
            self._owed_by[letter.sequence] = owed_by
        self._unsafe[letter.sequence] = None
        self._take(letter)

    async def post_safely(self, letter: Letter) -> None:
        """As ``post``, and wait, some seconds at most, until the broker or the disk has it."""
        self.post(letter)
        if letter.sequence not in self._unsafe:
            return
        safe = self._unsafe[letter.sequence] = asyncio.get_running_loop().create_future()
        await asyncio.wait({safe}, timeout=_SAFE_SECONDS)
        if not safe.done():
            log.warning("outbox.unsafe", event_type=letter.event_type, message_id=letter.message_id)

    async def run(self) -> None:
        """Send and keep until cancelled; then send what is left, within two seconds, and keep the rest."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._send(), name="outbox-send")
                group.create_task(self._keep(), name="outbox-keep")
        finally:
            try:
                async with asyncio.timeout(_FLUSH_SECONDS):
                    while self._waiting:
                        await self._send_first()
            except (SevAgentError, TimeoutError) as error:
                log.warning("outbox.unsent", left=self.waiting, error=str(error))
            await uninterrupted(self._commit())
            await self._settle()
            self._spool.close()

    async def _send(self) -> None:
        while True:
            raise_if_cancelled()
            await self._arrived.wait()
            self._arrived.clear()
            while self._waiting:
                try:
                    await self._send_first()
                except Unavailable:
                    await asyncio.sleep(_RETRY_SECONDS)

    async def _send_first(self) -> None:
        """It leaves only when the broker has it: a stop in between may send it twice, but never loses it."""
        letter = next(iter(self._waiting.values()))
        reached(CrashPoint.OUTBOX_BEFORE_SEND)
        await self._notifier.publish(letter.body.encode("ascii"), letter.priority)
        reached(CrashPoint.OUTBOX_AFTER_SEND)
        self._leave(letter.sequence)

    async def _keep(self) -> None:
        while True:
            raise_if_cancelled()
            await self._to_keep.wait()
            if self._notifier.can_send:
                # A broker that takes them at once leaves nothing to write; and what is to settle is in no hurry.
                await asyncio.sleep(_GRACE_SECONDS)
            self._to_keep.clear()
            if not await uninterrupted(self._commit()):
                await asyncio.sleep(_RETRY_SECONDS)
            await self._settle()

    def _take(self, letter: Letter) -> None:
        self._sequence = max(self._sequence, letter.sequence)
        self._waiting[letter.sequence] = letter
        self._bytes += letter.size
        if letter.is_progress:
            self._progress[letter.sequence] = None
        while len(self._waiting) > self._max_count or (self._bytes > self._max_bytes and len(self._waiting) > 1):
            self._drop()
        self._arrived.set()
        self._to_keep.set()

    def _drop(self) -> None:
        sequence = next(iter(self._progress or self._waiting))
        letter = self._waiting[sequence]
        log.error("outbox.dropped", event_type=letter.event_type, message_id=letter.message_id, waiting=self.waiting)
        if self._on_dropped is not None:
            self._on_dropped(letter)
        self._leave(sequence)

    def _leave(self, sequence: int) -> None:
        """``sequence`` was taken by the broker, or dropped."""
        letter = self._waiting.pop(sequence, None)
        if letter is None:
            return
        self._bytes -= letter.size
        self._progress.pop(sequence, None)
        if sequence in self._unsafe:
            self._is_safe(sequence)
        else:
            self._gone.append(sequence)
            self._to_keep.set()

    def _is_safe(self, sequence: int) -> None:
        safe = self._unsafe.pop(sequence, None)
        if safe is not None and not safe.done():
            safe.set_result(None)
        self._settled(sequence)

    def _settled(self, sequence: int) -> None:
        if (uuid := self._owed_by.pop(sequence, None)) is not None:
            self._to_settle.append((uuid, sequence))
            self._to_keep.set()

    async def _commit(self) -> bool:
        """Bring the spool up to what waits, in one write. False where the disk does not take it.

        Called uninterrupted: what the disk has, and what is noted of it here, must not differ.
        """
        came, gone = [self._waiting[sequence] for sequence in self._unsafe], self._gone
        if not came and not gone:
            return True
        self._gone = []
        reached(CrashPoint.OUTBOX_BEFORE_COMMIT)
        try:
            await asyncio.to_thread(self._spool.commit, came, gone)
        except OSError as error:
            log.warning("outbox.keep.failed", error=str(error), unsafe=len(came))
            self._gone = gone + self._gone
            self._to_keep.set()
            return False
        reached(CrashPoint.OUTBOX_AFTER_COMMIT)
        self._kept(came)
        return True

    def _kept(self, letters: Iterable[Letter]) -> None:
        for letter in letters:
            self._is_safe(letter.sequence)
            if letter.sequence not in self._waiting:
                # It left while it was being written down.
                self._gone.append(letter.sequence)
                self._to_keep.set()

    async def _settle(self) -> None:
        """Free the records of what is safe; one that cannot be written makes a letter come twice, after a restart."""
        while self._to_settle:
            uuid, sequence = self._to_settle.pop(0)
            reached(CrashPoint.OUTBOX_BEFORE_SETTLE)
            try:
                await in_thread(self._store.settle, uuid, sequence)
            except SevAgentError as error:
                log.warning("outbox.settle.failed", instance_uuid=str(uuid), error=str(error))
            reached(CrashPoint.OUTBOX_AFTER_SETTLE)
