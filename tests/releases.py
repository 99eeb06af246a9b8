"""Allocations taken away behind everybody's back."""

from dataclasses import replace
from uuid import UUID

from sev_agent.openstack.placement import Placement, retry_conflicts


async def release(placement: Placement, consumer: UUID) -> bool:
    """Give back all that ``consumer`` holds. False when it held nothing."""

    async def attempt() -> bool:
        held = await placement.allocation(consumer)
        if held is None:
            return False
        await placement.put_allocation(consumer, replace(held, resources={}))
        return True

    return await retry_conflicts(attempt)
