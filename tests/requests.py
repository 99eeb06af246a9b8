"""Requests for instances, and what a host makes of them."""

from typing import Any
from uuid import UUID, uuid4

from sev_agent.compute.record import Record, State
from sev_agent.schema import BuildArguments, Instance, parse
from sev_agent.sev.generation import Generation


def requested(uuid: UUID | None = None, **changes: Any) -> dict[str, Any]:
    """An instance as a message brings it, with ``changes``: 2 vCPUs, 64 MiB, 1 GiB."""
    return {
        "uuid": str(uuid or uuid4()),
        "name": "web",
        "project_id": "project",
        "user_id": "user",
        "flavor": {"vcpus": 2, "memory_mb": 64, "root_gb": 1, "extra_specs": {"hw:mem_encryption": "true"}},
        "image": {"id": str(uuid4())},
    } | changes


def instance(uuid: UUID | None = None, **changes: Any) -> Instance:
    """The same, checked."""
    return parse(BuildArguments, {"instance": requested(uuid, **changes)}).instance


def record(state: State = State.ACTIVE, uuid: UUID | None = None, **changes: Any) -> Record:
    """What a host knows of such an instance in ``state``."""
    accepted = Record.accept(instance(uuid), "req-1")
    return accepted.with_(**{"state": state, "generation": Generation.SEV} | changes)
