"""Claims for instances on their way to a host. Placement is their journal: there is no other."""

from collections.abc import Mapping
from dataclasses import replace
from uuid import UUID

from sev_agent.errors import Unavailable
from sev_agent.openstack.placement import Allocation, ConcurrentUpdate, Placement, Resources, retry_conflicts
from sev_agent.schema import Instance
from sev_agent.sev.holdings import ConsumerType
from sev_agent.uninterrupted import uninterrupted


class Contended(Unavailable):
    """Others claim from the same hosts all the time; nothing is said about whether there is room."""

    code = "scheduler.contended"


class Claims:
    """Makes, finds and gives back claims. Every method raises what ``Placement`` raises when it is away."""

    def __init__(self, placement: Placement) -> None:
        self._placement = placement

    async def make(self, instance: Instance, resources: Mapping[UUID, Resources]) -> Allocation | None:
        """Claim ``resources``, all or nothing; instead of that, return what ``instance`` holds already.

        Raises ``Full``, ``Contended``, and ``PlacementRefused`` where a provider has left.
        """
        claim = Allocation(
            resources=resources,
            project_id=instance.project_id or "unknown",
            user_id=instance.user_id or "unknown",
            consumer_type=ConsumerType.SCHEDULED,
        )

        async def attempt() -> Allocation | None:
            try:
                # Most consumers are new: one request then does it, and says so where one is not.
                await self._placement.put_allocation(instance.uuid, claim)
            except ConcurrentUpdate:
                held = await self.held_by(instance.uuid)
                if held is None:
                    raise
                return held
            return None

        try:
            # Placement may carry out a request that nobody waits for any more.
            return await uninterrupted(retry_conflicts(attempt))
        except ConcurrentUpdate as error:
            raise Contended(error.message, remedy="it is tried again") from error

    async def held_by(self, uuid: UUID) -> Allocation | None:
        """What ``uuid`` holds."""
        return await self._placement.allocation(uuid)

    async def give_back(self, uuid: UUID, claimed: Mapping[UUID, Resources]) -> None:
        """Release the claim of ``claimed``, unless it has become something else meanwhile."""

        async def attempt() -> None:
            held = await self.held_by(uuid)
            if held is None or held.consumer_type != ConsumerType.SCHEDULED or held.resources.keys() != claimed.keys():
                return
            # Not DELETE: that would also remove what somebody claims for this consumer between the read and it.
            await self._placement.put_allocation(uuid, replace(held, resources={}))

        try:
            await uninterrupted(retry_conflicts(attempt))
        except ConcurrentUpdate as error:
            raise Contended(error.message, remedy="it is tried again") from error
