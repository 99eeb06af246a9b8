"""What a host knows of one instance."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from sev_agent.compute.qcow2 import BadHeader
from sev_agent.compute.record import Fault, Record, State
from sev_agent.errors import InvalidRequest
from tests.journal import NO_SPACE
from tests.requests import instance, record


def test_tombstone() -> None:
    """What is kept of a deleted instance has none of the tenant's own data, and no hold on an image."""
    full = record(
        base_image=Path("/images/a"),
        instance=instance(user_data="c2VjcmV0", metadata={"secret": "m"}, public_keys={"secret": "k"}),
    )

    tombstone = full.deleted()

    assert tombstone.uuid == full.uuid
    assert tombstone.base_image is None
    assert "secret" not in tombstone.model_dump_json()
    assert "c2VjcmV0" not in tombstone.model_dump_json()


def test_faults() -> None:
    """A fault tells the step, the code and what to do; one that is not ours tells what it was."""
    ours = Fault.of(InvalidRequest("is wrong", field="instance.name", remedy="correct it"), "image")
    full = Fault.of(NO_SPACE, "config_drive")
    unknown = Fault.of(BadHeader("odd"), "disk")

    assert (ours.code, ours.step, ours.field, ours.remedy) == (
        "request.invalid",
        "image",
        "instance.name",
        "correct it",
    )
    assert (full.code, full.retryable) == ("disk.full", True)
    assert full.remedy
    assert (unknown.code, unknown.message) == ("internal", "BadHeader: odd")


@pytest.mark.parametrize(
    ("state", "unfinished", "files"),
    [
        (State.BUILDING, True, True),
        (State.ACTIVE, False, True),
        (State.STOPPED, False, True),
        (State.FAILING, True, True),
        (State.ERROR, False, False),
        (State.RESCHEDULED, False, False),
        (State.DELETING, True, True),
        (State.DELETED, False, False),
    ],
)
def test_states(state: State, *, unfinished: bool, files: bool) -> None:
    """What is resumed after a restart, and what may still lean on an image."""
    assert state.is_unfinished is unfinished
    assert state.has_files is files
    assert Record.accept(instance(), "req").with_(state=state).state is state


def test_clock_is_set_back() -> None:
    """A later change has the later time, also where the clock was set back between the two."""
    ahead = record().model_copy(update={"updated_at": datetime.now(UTC) + timedelta(days=1)})
    assert ahead.with_(state=State.ACTIVE).updated_at > ahead.updated_at
