"""Why no host takes a request, by how many hosts are left after each condition. Pure."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from sev_agent.errors import Exhausted
from sev_agent.scheduler.demand import MAX_HOSTS, Request
from sev_agent.schema import Attempt

_MAX_SAID: Final = 500


class Stage(StrEnum):
    """What a host must be, one after the other: each is counted among those that are all before it."""

    KNOWN = "known"
    OF_NODE_TYPE = "of_node_type"
    ENABLED = "enabled"
    ALIVE = "alive"
    FREE_SLOT = "free_slot"
    ENOUGH_RAM = "enough_ram"
    ENOUGH_DISK = "enough_disk"
    ENOUGH_VCPUS = "enough_vcpus"
    NOT_TRIED = "not_tried"


Counts = Mapping[Stage, int]
"""Hosts left after each stage."""


class NoValidHost(Exhausted):
    """No host can take the request. ``counts`` say at which condition the last one dropped out."""

    code = "scheduler.no_valid_host"

    def __init__(self, message: str, counts: Counts, *, field: str | None, remedy: str) -> None:
        super().__init__(message, field=field, remedy=remedy)
        self.counts = counts


@dataclass(frozen=True, slots=True)
class _Words:
    """A stage in words: what is counted, what to do where nobody is left, and whose fault that is in the request."""

    counted: Callable[[Request], str]
    remedy: str
    field: str | None = None


def _ram(request: Request) -> str:
    return f"with {request.demand.size.memory_mb} MiB of RAM left"


_WORDS: Final[Mapping[Stage, _Words]] = {
    Stage.KNOWN: _Words(
        lambda _: "known", "start sev-agent on a compute host: it registers the host in Placement", "host"
    ),
    Stage.OF_NODE_TYPE: _Words(
        lambda _: "of node type sev",
        "no host can run encrypted guests: its /readyz and log say which layer is missing (firmware, kernel, libvirt)",
    ),
    Stage.ENABLED: _Words(
        lambda _: "enabled", "take the trait COMPUTE_STATUS_DISABLED from a host's resource provider, or enable it"
    ),
    Stage.ALIVE: _Words(
        lambda _: "alive",
        "start sev-agent on a host, or look at its /readyz; 'sev-agent hosts' tells which are down",
    ),
    Stage.FREE_SLOT: _Words(
        lambda request: f"with a free {request.demand.generation} slot",
        "delete or stop an encrypted guest, or add a host; 'sev-agent hosts' shows the slots of each",
    ),
    Stage.ENOUGH_RAM: _Words(_ram, "use a smaller flavor, or free memory on a host", "instance.flavor.memory_mb"),
    Stage.ENOUGH_DISK: _Words(
        lambda request: f"with {request.demand.size.disk_gb} GiB of disk left",
        "use a flavor with a smaller disk, or free disk space on a host",
        "instance.flavor.root_gb",
    ),
    Stage.ENOUGH_VCPUS: _Words(
        lambda request: f"with {request.demand.size.vcpus} vCPUs left",
        "use a flavor with fewer vCPUs, or free some on a host",
        "instance.flavor.vcpus",
    ),
    Stage.NOT_TRIED: _Words(
        lambda _: "not tried yet", "each host that could take it failed: mend what they said, and try again"
    ),
}


def explain(request: Request, counts: Counts) -> NoValidHost:
    """The error that says, and counts, why ``request`` has no host."""
    failed = _failed(request.tried)
    if len(request.tried) >= MAX_HOSTS:
        return NoValidHost(
            f"{len(request.tried)} hosts could not build the server, and no more are tried. {failed}",
            counts,
            field=None,
            remedy="mend what the hosts said, and create the server again",
        )
    last = next((stage for stage in Stage if not counts[stage]), None)
    told = [f"{counts[stage]} {_WORDS[stage].counted(request)}" for stage in _up_to(last)]
    whose = "hosts" if request.forced_host is None else f"hosts by the name that was asked for, '{request.forced_host}'"
    message = f"no valid host was found. Of the {whose}: {', '.join(told)}" + (f". {failed}" if failed else "")
    if last is None:
        return NoValidHost(message, counts, field=None, remedy="a host has become free meanwhile: try again")
    return NoValidHost(message, counts, field=_WORDS[last].field, remedy=_WORDS[last].remedy)


def _up_to(last: Stage | None) -> list[Stage]:
    stages = list(Stage)
    return stages if last is None else stages[: stages.index(last) + 1]


def _failed(tried: tuple[Attempt, ...]) -> str:
    said = (f"{attempt.host} said: {_brief(attempt.message)} ({attempt.code})" for attempt in tried)
    return "; ".join(said)


def _brief(text: str) -> str:
    return text if len(text) <= _MAX_SAID else f"{text[: _MAX_SAID - 1]}…"
