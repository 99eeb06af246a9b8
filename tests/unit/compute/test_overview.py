"""What the status page tells of a host: everything that is known, and no word of a tenant."""

from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest

from sev_agent.compute.overview import MOST_ROWS, Overview
from sev_agent.compute.reconciler import LastComparison
from sev_agent.compute.record import Fault, State
from sev_agent.compute.slots import Generations, SlotTotal
from sev_agent.errors import SevAgentError
from sev_agent.observe.health import Health
from sev_agent.observe.page import Row, StatusPage, Table
from sev_agent.sev.generation import Generation
from tests.requests import instance, record
from tests.status_page import read
from tests.unit.compute.scripted_host import Host

SECRETS = {"name": "tenants-name", "user_data": "dGVuYW50cy1kYXRh", "metadata": {"tenants-key": "tenants-value"}}


class Parts:
    """A host of which a test says what is known; nothing yet, to begin with."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.status = SimpleNamespace(found=Generations({}, {}), capabilities=None, domains=list)
        self.readiness = SimpleNamespace(stranded={})
        self.accounting = SimpleNamespace(slots_used=list)
        self.reconciler = SimpleNamespace(last=None)
        self.outbox = SimpleNamespace(waiting=0)
        self.hypervisor = SimpleNamespace(overdue_calls=0)

    def overview(self) -> Overview:
        parts: dict[str, Any] = {name: part for name, part in vars(self).items() if name != "host"}
        operations = self.host.instances._operations
        return Overview("node1", store=self.host.store, operations=operations, metrics=self.host.metrics, **parts)

    def html(self) -> str:
        html = StatusPage("Host node1", health=Health(), tables=self.overview().tables).html()
        read(html)
        return html

    def table(self, heading: str) -> Table:
        return next(table for table in self.overview().tables() if table.heading == heading)

    def cells(self, heading: str) -> list[tuple[str, ...]]:
        return [row.cells for row in self.table(heading).rows]


@pytest.fixture
def parts(host: Host) -> Parts:
    return Parts(host)


def test_nothing_known_yet(parts: Parts) -> None:
    """A daemon that has reached neither libvirt nor Placement nor RabbitMQ has a page, which says so."""
    assert "Nobody has told yet what this host can run." in parts.html()
    assert parts.table("Comparison with Placement").note == "There has been none since the start of this daemon."
    assert parts.cells("This daemon")[0] == ("libvirt", "not known yet")
    assert parts.table("Instances").note == parts.table("Operations in hand").note == "None."


def test_slots(parts: Parts) -> None:
    """Total, used and free of each generation, which bound ruled, and why another generation has none."""
    usable = {
        Generation.SEV: SlotTotal({"kernel": 15, "configuration": 10}),
        Generation.SEV_SNP: SlotTotal({"kernel": 4}),
    }
    parts.status.found = Generations(usable, {Generation.SEV_ES: "SEV-SNP is on"})
    parts.accounting.slots_used = lambda: [(("amd-sev",), 3.0)]
    assert parts.cells("Encryption slots") == [
        ("amd-sev", "10", "3", "7", "configuration", "kernel 15, configuration 10"),
        ("amd-sev-snp", "4", "not known yet", "not known yet", "kernel", "kernel 4"),
        ("amd-sev-es", "0", "0", "0", "", "SEV-SNP is on"),
    ]


def test_overfull_and_stranded(parts: Parts) -> None:
    """More guests than slots leave none free, not fewer than none; stranded guests are marked."""
    parts.status.found = Generations({Generation.SEV: SlotTotal({"kernel": 1})}, {Generation.SEV_ES: "it is off"})
    parts.accounting.slots_used = lambda: [(("amd-sev",), 2.0), (("amd-sev-es",), 1.0)]
    parts.readiness.stranded = {Generation.SEV_ES: (uuid4(),)}
    full, stranded = parts.table("Encryption slots").rows
    assert full.cells[:4] == ("amd-sev", "1", "2", "0")
    assert stranded == Row(("amd-sev-es", "0", "1", "0", "", "it is off; guests of it that are stranded here: 1"), True)  # noqa: FBT003


@pytest.mark.parametrize("state", State)
def test_each_state(parts: Parts, state: State) -> None:
    """An instance of any state has its row and its count; an unfinished one is in hand, and one that is gone is not."""
    known = record(state)
    parts.host.store.save(known)
    parts.html()
    here = not state.is_gone
    assert [cells[0] for cells in parts.cells("Instances")] == [str(known.uuid)] * here
    assert parts.cells("Instances by state") == [(state, "1")] * here
    assert [cells[:2] for cells in parts.cells("Operations in hand")] == [
        (str(known.uuid), state)
    ] * state.is_unfinished


def test_error(parts: Parts) -> None:
    """An instance in error stands first, marked, with the code of its fault and not its words."""
    fault = Fault(code="image.format", message="tenants-image is no qcow2", step="cache")
    failed = record(State.ERROR, fault=fault, generation=None)
    parts.host.store.save(failed)
    parts.host.store.save(record())
    first, second = parts.table("Instances").rows
    assert first.cells[:3] == (str(failed.uuid), "error", "not chosen yet")
    assert (first.cells[4], first.look, second.look) == ("image.format", True, False)
    assert "tenants-image" not in parts.html()


def test_many(parts: Parts) -> None:
    """Rows are bounded, and what is left out is counted."""
    for _ in range(MOST_ROWS + 3):
        parts.host.store.save(record(State.BUILDING))
    for heading in ("Instances", "Operations in hand"):
        shown = parts.table(heading)
        assert (len(shown.rows), shown.note) == (MOST_ROWS, "3 more: sev-agent instance list --host node1")
    assert parts.cells("Instances by state") == [("building", str(MOST_ROWS + 3))]


async def test_operation_in_hand(parts: Parts) -> None:
    """A build in hand shows its step; one that waits, the code of what it waits for."""
    await parts.host.instances.build(instance(), "req-1")
    uuid, _ = await parts.host.begun()
    ((shown, state, _, steps, why),) = parts.cells("Operations in hand")
    assert (shown, state, steps, why) == (str(uuid), "building", "disk", "")

    parts.host.instances._operations._waiting[uuid] = Fault.of(SevAgentError("tenants-words"), "build")
    (row,) = parts.table("Operations in hand").rows
    assert (row.cells[4], row.look) == (SevAgentError.code, True)
    assert "tenants-words" not in parts.html()


def test_comparison(parts: Parts) -> None:
    """When the last comparison was, what it found, and what of that it could not repair."""
    parts.reconciler.last = LastComparison(0, {})
    assert parts.table("Comparison with Placement").note.endswith(" ago, and found no difference.")
    parts.reconciler.last = LastComparison(0, {("surplus", True): 2, ("missing", False): 1})
    shown = parts.table("Comparison with Placement")
    assert shown.note.endswith(" ago, and found what stands above.")
    assert shown.rows == (Row(("surplus", "yes", "2")), Row(("missing", "no", "1"), look=True))


def test_domains_and_daemon(parts: Parts) -> None:
    """Libvirt's domains by state, its version, the notifications that wait, and the calls that hang."""
    parts.status.domains = lambda: [(("running", "true"), 2.0), (("running", "false"), 1.0), (("shutoff", "true"), 4.0)]
    parts.status.capabilities = SimpleNamespace(libvirt_version="11.3.0", emulator_version="10.0.2")
    parts.outbox.waiting, parts.hypervisor.overdue_calls = 7, 1
    assert parts.cells("Domains of libvirt, as last seen") == [("running", "2", "1"), ("shutoff", "4", "0")]
    *told, hanging = parts.table("This daemon").rows
    assert [row.cells[1] for row in told] == ["11.3.0", "10.0.2", "7"]
    assert (hanging.cells[1], hanging.look) == ("1", True)


def test_no_word_of_a_tenant(parts: Parts) -> None:
    """Neither a name nor data of a tenant is on the page."""
    known = record(State.ACTIVE)
    parts.host.store.save(known.with_(instance=instance(known.uuid, **SECRETS)))
    html = parts.html()
    assert str(known.uuid) in html
    assert "tenants" not in html
    assert str(SECRETS["user_data"]) not in html
    assert str(known.instance.image.id) not in html
