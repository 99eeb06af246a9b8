"""What a host answers over RabbitMQ, below the wire."""

from pathlib import Path
from typing import Any, cast
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sev_agent.compute.drift import Difference, Reconciliation
from sev_agent.compute.instances import InstanceNotFound, Instances
from sev_agent.compute.methods import query_methods, tail, work_methods
from sev_agent.compute.reconciler import Reconciler
from sev_agent.compute.record import Record, State
from sev_agent.compute.record_store import RecordStore
from sev_agent.errors import InvalidRequest
from sev_agent.messaging.envelope import RequestContext
from sev_agent.schema import Instance, Scheduling, parse
from tests.requests import record, requested

LEAKED = uuid4()


class Known:
    """Stands for the instances of a host."""

    def __init__(self, *records: Record) -> None:
        self._records = {known.uuid: known for known in records}
        self.calls: list[tuple[Any, ...]] = []

    async def build(self, asked: Instance, request_id: str, scheduling: Scheduling | None) -> Record:
        self.calls.append(("build", asked.uuid, request_id, scheduling))
        return Record.accept(asked, request_id)

    async def terminate(self, uuid: UUID, request_id: str) -> None:
        self.calls.append(("terminate", uuid, request_id))

    async def change_power(self, uuid: UUID, to: State, request_id: str) -> Record:
        self.calls.append((to, uuid, request_id))
        return record(to, uuid)

    def view(self, uuid: UUID) -> dict[str, Any]:
        if uuid not in self._records:
            raise InstanceNotFound("there is none", field="instance_uuid")
        return {"uuid": str(uuid)}

    def views(self) -> list[dict[str, Any]]:
        return [self.view(uuid) for uuid in self._records]


class _Compared:
    """A reconciler that found one leaked allocation."""

    async def now(self, *, dry_run: bool) -> Reconciliation:
        found = Difference(LEAKED, {LEAKED: {"VCPU": 1}}, {})
        return Reconciliation(differences=(found,), unrepaired={}, dry_run=dry_run)


async def _status() -> dict[str, Any]:
    return {"ready": True}


async def ask(known: Known, store: RecordStore, method: str, **arguments: Any) -> Any:
    """The answer to ``method``, its arguments checked as in the daemon."""
    instances = cast("Instances", known)
    queries = query_methods(instances, store, _status, cast("Reconciler", _Compared()))
    methods = {found.name: found for found in (*work_methods(instances), *queries)}
    found = methods[method]
    return await found.handler(RequestContext(request_id="req-1"), parse(found.arguments, arguments))


async def test_work(store: RecordStore) -> None:
    """Work is answered once it is accepted, and carries the request's identifier."""
    known, uuid = Known(), uuid4()

    built = await ask(known, store, "build_and_run_instance", instance=requested(uuid))
    await ask(known, store, "build_and_run_instance", instance=requested(uuid), scheduling={"forced_host": "node1"})
    terminated = await ask(known, store, "terminate_instance", instance_uuid=str(uuid))

    assert built == {"uuid": str(uuid), "state": "building"}
    assert terminated is None
    assert known.calls == [
        ("build", uuid, "req-1", None),
        ("build", uuid, "req-1", Scheduling(forced_host="node1")),
        ("terminate", uuid, "req-1"),
    ]


async def test_reconcile(store: RecordStore) -> None:
    """A comparison is answered with what differed, and whether that is repaired."""
    told = await ask(Known(), store, "reconcile")
    rehearsed = await ask(Known(), store, "reconcile", dry_run=True)

    assert told == {
        "dry_run": False,
        "differences": [
            {
                "subject": str(LEAKED),
                "kind": "surplus",
                "held": {str(LEAKED): {"VCPU": 1}},
                "wanted": {},
                "repaired": True,
                "error": None,
            }
        ],
    }
    assert rehearsed["dry_run"]
    assert not rehearsed["differences"][0]["repaired"]


@pytest.mark.parametrize(
    ("method", "arguments", "state"),
    [
        ("start_instance", {}, State.STARTING),
        ("stop_instance", {}, State.STOPPING),
        ("reboot_instance", {}, State.REBOOTING),
        ("reboot_instance", {"reboot_type": "SOFT"}, State.REBOOTING),
        ("reboot_instance", {"reboot_type": "HARD"}, State.REBOOTING_HARD),
    ],
)
async def test_power(store: RecordStore, method: str, arguments: dict[str, str], state: State) -> None:
    """A start, a stop or a reboot is answered with the state that says that it is under way."""
    known, uuid = Known(), uuid4()

    answer = await ask(known, store, method, instance_uuid=str(uuid), **arguments)

    assert answer == {"uuid": str(uuid), "state": state.value}
    assert known.calls == [(state, uuid, "req-1")]


async def test_reboot_of_an_unknown_kind(store: RecordStore) -> None:
    """There are two ways to reboot, and the refusal names the field."""
    with pytest.raises(InvalidRequest) as caught:
        await ask(Known(), store, "reboot_instance", instance_uuid=str(uuid4()), reboot_type="GENTLE")

    assert caught.value.field == "reboot_type"


async def test_questions(store: RecordStore) -> None:
    """Instances and the host are told as they are; one that is unknown is an error."""
    there = record()
    known = Known(there)

    assert await ask(known, store, "get_instance", instance_uuid=str(there.uuid)) == {"uuid": str(there.uuid)}
    assert await ask(known, store, "list_instances") == [{"uuid": str(there.uuid)}]
    assert await ask(known, store, "get_host_status") == {"ready": True}
    with pytest.raises(InstanceNotFound):
        await ask(known, store, "get_instance", instance_uuid=str(uuid4()))


async def test_console(store: RecordStore) -> None:
    """A console is empty before the guest prints, and then its last lines."""
    there = record()
    store.save(there)
    known, uuid = Known(there), str(there.uuid)

    assert await ask(known, store, "get_console_output", instance_uuid=uuid) == ""
    store.files(there.uuid).console_log.write_bytes(b"one\r\ntwo\r\nthree\r\n")
    assert await ask(known, store, "get_console_output", instance_uuid=uuid) == "one\r\ntwo\r\nthree\r\n"
    assert await ask(known, store, "get_console_output", instance_uuid=uuid, length=2) == "two\r\nthree\r\n"
    with pytest.raises(InstanceNotFound):
        await ask(known, store, "get_console_output", instance_uuid=str(uuid4()))


def test_tail_of_anything(tmp_path: Path) -> None:
    """What is not UTF-8 is replaced, and of a long console only the end is read."""
    path = tmp_path / "console.log"
    path.write_bytes(b"\xff\xfe\n" + b"x" * 600_000 + b"\nend")

    text = tail(path, None)

    assert len(text) == 512 * 1024
    assert text.endswith("\nend")
    assert tail(path, 1) == "end"
    path.write_bytes(b"a\xffb\n")
    assert tail(path, 5) == "a\ufffdb\n"


def test_tail_of_a_rotated_console(tmp_path: Path) -> None:
    """What was rotated away is read as well, the oldest first, as far as the bound goes."""
    path = tmp_path / "console.log"
    assert tail(path, None) == ""
    path.with_name("console.log.1").write_bytes(b"one\n")
    path.with_name("console.log.0").write_bytes(b"two\n")
    assert tail(path, None) == "one\ntwo\n"
    path.write_bytes(b"three\n")
    assert tail(path, None) == "one\ntwo\nthree\n"
    assert tail(path, 2) == "two\nthree\n"

    path.with_name("console.log.0").write_bytes(b"x" * 600_000 + b"\n")
    text = tail(path, None)
    assert len(text) == 512 * 1024
    assert text.endswith("xxx\nthree\n")
    assert "one" not in text


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200), st.integers(1, 5))
def test_tail_of_any_bytes(tmp_path: Path, content: bytes, lines: int) -> None:
    """Whatever a guest printed, the answer is at most as many lines as were asked for, and the end of it."""
    path = tmp_path / "console.log"
    path.write_bytes(content)

    text = tail(path, lines)

    assert content.decode(errors="replace").endswith(text)
    assert text.removesuffix("\n").count("\n") < lines
