"""What the status page tells of a host: its slots, its guests, its counts, its work. Read from memory alone."""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Final

from sev_agent.compute.accounting import Accounting
from sev_agent.compute.host_watch import ReadinessReport
from sev_agent.compute.operations import Operations
from sev_agent.compute.outbox import Outbox
from sev_agent.compute.reconciler import Reconciler
from sev_agent.compute.record import Record, State
from sev_agent.compute.record_store import RecordStore
from sev_agent.compute.slots import SlotTotal
from sev_agent.compute.status import HostStatus
from sev_agent.hypervisor.connection import Hypervisor
from sev_agent.observe.metrics import Metrics
from sev_agent.observe.page import Row, Table, ago, counted
from sev_agent.sev.generation import Generation

MOST_ROWS: Final = 50
_UNKNOWN: Final = "not known yet"


class Overview:
    """The tables of a host. No name, flavor or image of a tenant is in them, and nothing that a tenant wrote."""

    def __init__(
        self,
        host: str,
        *,
        status: HostStatus,
        readiness: ReadinessReport,
        accounting: Accounting,
        store: RecordStore,
        operations: Operations,
        reconciler: Reconciler,
        outbox: Outbox,
        hypervisor: Hypervisor,
        metrics: Metrics,
    ) -> None:
        self._host = host
        self._status = status
        self._readiness = readiness
        self._accounting = accounting
        self._store = store
        self._operations = operations
        self._reconciler = reconciler
        self._outbox = outbox
        self._hypervisor = hypervisor
        self._metrics = metrics

    def tables(self) -> Iterator[Table]:
        """What there is to tell now, also while libvirt, Placement and RabbitMQ are away: what was known last."""
        records = list(self._store.here())
        yield self._slots()
        yield self._comparison()
        yield self._work(records)
        yield self._daemon()
        yield _states(records)
        yield self._domains()
        yield self._instances(records)
        yield counted("Builds", self._metrics.builds)
        yield counted("Comparisons with Placement", self._metrics.reconciliations)

    def _slots(self) -> Table:
        used = {generation: int(number) for (generation,), number in self._accounting.slots_used()}
        found = self._status.found
        rows = [
            *(_usable(generation, slots, used.get(generation)) for generation, slots in found.usable.items()),
            *(self._unusable(generation, why, used.get(generation, 0)) for generation, why in found.unusable.items()),
        ]
        return Table(
            heading="Encryption slots",
            columns=("Generation", "Total", "Used", "Free", "Ruled by", "Of"),
            rows=tuple(rows),
            note="" if rows else "Nobody has told yet what this host can run.",
        )

    def _unusable(self, generation: Generation, why: str, used: int) -> Row:
        stranded = len(self._readiness.stranded.get(generation, ()))
        told = f"{why}; guests of it that are stranded here: {stranded}" if stranded else why
        return Row((generation, "0", str(used), "0", "", told), look=stranded > 0)

    def _comparison(self) -> Table:
        last = self._reconciler.last
        if last is None:
            note = "There has been none since the start of this daemon."
        else:
            found = "what stands above" if last.found else "no difference"
            note = f"The last one that ended well was {ago(last.at)} ago, and found {found}."
        return Table(
            heading="Comparison with Placement",
            columns=("Difference", "Repaired", "Number"),
            rows=tuple(
                Row((kind, "yes" if repaired else "no", str(number)), look=not repaired)
                for (kind, repaired), number in (last.found if last else {}).items()
            ),
            note=note,
        )

    def _work(self, records: Iterable[Record]) -> Table:
        unfinished = [record for record in records if record.state.is_unfinished]
        oldest = sorted(unfinished, key=lambda record: record.updated_at)[:MOST_ROWS]
        return Table(
            heading="Operations in hand",
            columns=("Instance", "State", "For", "At work on", "Waits because of"),
            rows=tuple(self._operation(record) for record in oldest),
            note=self._left_out(len(unfinished)),
        )

    def _operation(self, record: Record) -> Row:
        waiting = self._operations.waiting_for(record.uuid)
        steps = ", ".join(self._operations.steps(record.uuid))
        # The code alone: a message may quote what a tenant gave.
        why = waiting.code if waiting else ""
        since = ago(record.updated_at.timestamp())
        return Row((str(record.uuid), record.state, since, steps, why), look=waiting is not None)

    def _daemon(self) -> Table:
        capabilities = self._status.capabilities
        overdue = self._hypervisor.overdue_calls
        return Table(
            heading="This daemon",
            columns=("What", "Value"),
            rows=(
                Row(("libvirt", capabilities.libvirt_version if capabilities else _UNKNOWN)),
                Row(("QEMU", capabilities.emulator_version if capabilities else _UNKNOWN)),
                Row(("notifications that wait for RabbitMQ", str(self._outbox.waiting))),
                Row(("calls to libvirt that do not return", str(overdue)), look=overdue > 0),
            ),
        )

    def _domains(self) -> Table:
        counts = {labels: int(number) for labels, number in self._status.domains()}
        states = sorted({state for state, _ in counts})
        return Table(
            heading="Domains of libvirt, as last seen",
            columns=("State", "Encrypted", "Not encrypted"),
            rows=tuple(
                Row((state, str(counts.get((state, "true"), 0)), str(counts.get((state, "false"), 0))))
                for state in states
            ),
            note="" if counts else "None.",
        )

    def _instances(self, records: list[Record]) -> Table:
        # What failed first, then the youngest: the rest goes its way.
        first = sorted(records, key=lambda record: (record.state is not State.ERROR, -record.created_at.timestamp()))
        return Table(
            heading="Instances",
            columns=("UUID", "State", "Generation", "Age", "Error"),
            rows=tuple(_instance(record) for record in first[:MOST_ROWS]),
            note=self._left_out(len(records)),
        )

    def _left_out(self, number: int) -> str:
        """What is said of the rows that are not shown, of ``number``."""
        if number > MOST_ROWS:
            return f"{number - MOST_ROWS} more: sev-agent instance list --host {self._host}"
        return "" if number else "None."


def _usable(generation: Generation, slots: SlotTotal, used: int | None) -> Row:
    of = ", ".join(f"{source} {number}" for source, number in slots.sources.items())
    free = _UNKNOWN if used is None else str(max(0, slots.total - used))
    taken = _UNKNOWN if used is None else str(used)
    return Row((generation, str(slots.total), taken, free, slots.ruled_by, of))


def _states(records: Iterable[Record]) -> Table:
    counts = Counter(record.state for record in records)
    return Table(
        heading="Instances by state",
        columns=("State", "Number"),
        rows=tuple(Row((state, str(counts[state])), look=state is State.ERROR) for state in State if counts[state]),
        note="" if counts else "None.",
    )


def _instance(record: Record) -> Row:
    age = ago(record.created_at.timestamp())
    generation = record.generation or "not chosen yet"
    fault = record.fault.code if record.fault else ""
    return Row((str(record.uuid), record.state, generation, age, fault), look=record.state is State.ERROR)
