"""Instances whose allocation could not be written, and when that is tried again."""

import asyncio
from collections.abc import Callable, Collection, Mapping
from typing import Final
from uuid import UUID

import structlog

from sev_agent.errors import SevAgentError
from sev_agent.openstack.placement import Full

log = structlog.stdlib.get_logger(__name__)

_RETRY_SECONDS: Final = 3.0


class Postponed:
    """Gives ``again`` what is to be tried once more: soon, whatever failed, but what Placement has no room for.

    That waits until something was given back: to ask before would only be refused again.
    """

    def __init__(self, again: Callable[[Collection[UUID]], None]) -> None:
        self._again = again
        self._late: set[UUID] = set()
        self._refused: set[UUID] = set()
        self._given_back = 0
        self._complaint = ""

    def begin(self, batch: Collection[UUID]) -> int:
        """Note that ``batch`` is tried now, and return the moment, for ``add``."""
        self._refused -= set(batch)
        return self._given_back

    def add(self, failed: Mapping[UUID, SevAgentError], *, since: int) -> None:
        """Take what ``failed`` of what was begun at the moment ``since``."""
        complaint = str(next(iter(failed.values()), ""))
        if complaint != self._complaint and complaint:  # said once, not at every attempt
            log.warning("accounting.postponed", instances=len(failed), error=complaint)
        refused = {uuid for uuid, error in failed.items() if isinstance(error, Full)}
        self._refused |= refused
        late = failed.keys() - refused
        if late and not self._late:
            asyncio.get_running_loop().call_later(_RETRY_SECONDS, self._retry)
        self._late |= late
        if failed or not (self._late or self._refused):
            self._complaint = complaint
        if self._given_back != since:
            # While these were being refused: they may not have seen it.
            self._try_refused()

    def made_room(self) -> None:
        """Note that something may have been given back."""
        self._given_back += 1
        self._try_refused()

    def _try_refused(self) -> None:
        if self._refused:
            self._again(frozenset(self._refused))

    def _retry(self) -> None:
        late = frozenset(self._late)
        self._late.clear()
        self._again(late)
