"""What a request needs of a host."""

from typing import Any

import pytest

from sev_agent.compute.allocation import ProviderTree
from sev_agent.compute.holding import Terms, managed
from sev_agent.errors import InvalidRequest
from sev_agent.scheduler.demand import SLOT_GROUP, Request
from sev_agent.schema import RescheduleArguments, ScheduleArguments, parse
from sev_agent.sev.generation import RESOURCE_CLASS, Generation
from tests.requests import record, requested

OVERHEAD = 100


def asked(**changes: Any) -> Request:
    return Request.of(parse(ScheduleArguments, {"instance": requested()} | changes), overhead_mb=OVERHEAD)


def test_as_the_host_counts() -> None:
    """What is asked of Placement is to the last unit what the host holds there for the guest when it runs."""
    built = record()
    (host,) = tree = [built.uuid]
    holding = managed(
        built, ProviderTree(root=host, generations={Generation.SEV: host}), Terms(overhead_mb=OVERHEAD), runs=True
    )
    request = Request.of(parse(ScheduleArguments, {"instance": requested()}), overhead_mb=OVERHEAD)

    groups = request.demand.groups
    assert tree == list(holding.resources)
    assert {**groups[""].resources, **groups[SLOT_GROUP].resources} == holding.resources[host]


@pytest.mark.parametrize(
    ("said", "flavors", "generation"),
    [
        (None, None, Generation.SEV),
        (None, "amd-sev-es", Generation.SEV_ES),
        ("amd-sev-snp", None, Generation.SEV_SNP),
        ("amd-sev-es", "amd-sev-es", Generation.SEV_ES),
    ],
)
def test_generation(said: str | None, flavors: str | None, generation: Generation) -> None:
    """The API's word counts, else the flavor's, else it is plain SEV; the slot is asked for with its trait."""
    instance = requested()
    if flavors is not None:
        instance["flavor"]["extra_specs"]["hw:mem_encryption_model"] = flavors
    demand = asked(instance=instance, generation=said).demand
    assert demand.generation is generation
    assert demand.slot.resources == {RESOURCE_CLASS: 1}
    assert demand.slot.required == {generation.trait}


def test_unknown_generation() -> None:
    """A flavor that asks for what is none is refused by its extra spec."""
    instance = requested()
    instance["flavor"]["extra_specs"]["hw:mem_encryption_model"] = "sgx"
    with pytest.raises(InvalidRequest) as caught:
        asked(instance=instance)
    assert caught.value.field == "instance.flavor.extra_specs.hw:mem_encryption_model"


def test_hosts_that_may_be_used() -> None:
    """Where one host is asked for no other will do, and none that failed."""
    tried = [{"host": "node1", "code": "x", "message": "y"}]
    free = Request.of(parse(RescheduleArguments, {"instance": requested(), "tried": tried}), overhead_mb=OVERHEAD)
    forced = asked(host="node1")
    both = Request.of(
        parse(RescheduleArguments, {"instance": requested(), "tried": tried, "host": "node1"}), overhead_mb=OVERHEAD
    )
    assert [request.may_use("node1") for request in (free, forced, both)] == [False, True, False]
    assert [request.may_use("node2") for request in (free, forced, both)] == [True, False, False]
