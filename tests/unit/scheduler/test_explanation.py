"""Why no host takes a request, in words that one can act on."""

from typing import Any

import pytest

from sev_agent.scheduler.demand import Request
from sev_agent.scheduler.explanation import Counts, Stage, explain
from sev_agent.schema import RescheduleArguments, ScheduleArguments, parse
from tests.requests import requested


def asked(*tried: str, **changes: Any) -> Request:
    attempts = [{"host": host, "code": "slots.none", "message": f"{host} is out of slots"} for host in tried]
    given = {"instance": requested()} | changes | ({"tried": attempts} if tried else {})
    return Request.of(parse(RescheduleArguments if tried else ScheduleArguments, given), overhead_mb=128)


def counts(**given: int) -> Counts:
    """Three hosts until the first stage that is ``given`` otherwise."""
    found, left = {}, 3
    for stage in Stage:
        left = min(left, given.get(stage.value, left))
        found[stage] = left
    return found


@pytest.mark.parametrize(
    ("stage", "said", "remedy", "field"),
    [
        (Stage.KNOWN, "0 known", "start sev-agent", "host"),
        (Stage.OF_NODE_TYPE, "0 of node type sev", "/readyz", None),
        (Stage.ENABLED, "0 enabled", "COMPUTE_STATUS_DISABLED", None),
        (Stage.ALIVE, "0 alive", "'sev-agent hosts'", None),
        (Stage.FREE_SLOT, "0 with a free amd-sev slot", "delete or stop", None),
        (Stage.ENOUGH_RAM, "0 with 192 MiB of RAM left", "smaller flavor", "instance.flavor.memory_mb"),
        (Stage.ENOUGH_DISK, "0 with 1 GiB of disk left", "smaller disk", "instance.flavor.root_gb"),
        (Stage.ENOUGH_VCPUS, "0 with 2 vCPUs left", "fewer vCPUs", "instance.flavor.vcpus"),
        (Stage.NOT_TRIED, "0 not tried yet", "mend", None),
    ],
)
def test_stage(stage: Stage, said: str, remedy: str, field: str | None) -> None:
    """The text counts down to the condition at which the last host dropped out, and says what to do about that one."""
    error = explain(asked(), counts(**{stage.value: 0}))
    assert error.code == "scheduler.no_valid_host"
    assert error.message.endswith(said)
    assert error.message.count("3 ") == list(Stage).index(stage)
    assert remedy in (error.remedy or "")
    assert error.field == field
    assert error.counts[stage] == 0


def test_what_hosts_said() -> None:
    """Each host that was tried is named with its own words."""
    error = explain(asked("node1", "node2"), counts(not_tried=0))
    assert "node1 said: node1 is out of slots (slots.none); node2 said: node2 is out of slots" in error.message


def test_three_tried() -> None:
    """After three hosts it is given up, whatever the counts are."""
    error = explain(asked("node1", "node2", "node3"), counts())
    assert error.message.startswith("3 hosts could not build the server")
    assert "node3 said" in error.message


def test_named_host() -> None:
    """Where one host was asked for, only that one is counted, and it is named."""
    error = explain(asked(host="node7"), counts(known=1, alive=0))
    assert "by the name that was asked for, 'node7': 1 known, 1 of node type sev, 1 enabled, 0 alive" in error.message


def test_free_meanwhile() -> None:
    """Where the counts find a host after all, that is said, and to try again."""
    assert "try again" in (explain(asked(), counts()).remedy or "")


def test_long_words() -> None:
    """What a host said at great length is cut."""
    tried = [{"host": "node1", "code": "x", "message": "m" * 4000}]
    request = Request.of(parse(RescheduleArguments, {"instance": requested(), "tried": tried}), overhead_mb=0)
    assert len(explain(request, counts(free_slot=0)).message) < 1000
