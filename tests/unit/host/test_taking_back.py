"""What was prepared is taken back byte for byte, whatever came between."""

from pathlib import Path

import pytest

from sev_agent.durable import write_durably
from sev_agent.host.preparation.arguments import PreparationRefused
from sev_agent.host.preparation.boot_loader import DROP_IN
from sev_agent.host.preparation.drop_ins import MODPROBE
from sev_agent.host.preparation.ledger import LEDGER, Ledger, PreparationFailed
from sev_agent.host.preparation.plan import make_plan
from sev_agent.sev.generation import Generation
from tests.unit.host.unprepared_hosts import (
    DEBIAN,
    NOT_YET,
    RED_HAT,
    SEV,
    SNP,
    SYSTEMD_BOOT,
    apply,
    host,
    snapshot,
    undo,
)


@pytest.mark.parametrize("generation", Generation)
@pytest.mark.parametrize("system", [DEBIAN, RED_HAT, SYSTEMD_BOOT], ids=["debian", "red-hat", "systemd-boot"])
def test_apply_then_undo_leaves_no_trace(system: dict[str, str], generation: Generation, tmp_path: Path) -> None:
    """Files, permissions and directories are what they were."""
    files = host(tmp_path, NOT_YET if system is DEBIAN else {"proc/cmdline": "ro\n"}, system)
    (tmp_path / "etc").chmod(0o750)
    if system is SYSTEMD_BOOT:
        (tmp_path / "etc/kernel/cmdline").chmod(0o640)
    before = snapshot(tmp_path)
    assert apply(files, generation).changes.files
    assert snapshot(tmp_path) != before

    undo(files)

    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("system", [DEBIAN, SYSTEMD_BOOT], ids=["debian", "systemd-boot"])
def test_a_second_apply_changes_nothing(system: dict[str, str], tmp_path: Path) -> None:
    """And undo still knows what was there before the first."""
    files = host(tmp_path, NOT_YET, system)
    before = snapshot(tmp_path)
    apply(files)
    after = snapshot(tmp_path)
    assert apply(files).changes.files == ()
    assert {name: part for name, part in snapshot(tmp_path).items() if name != LEDGER} == {
        name: part for name, part in after.items() if name != LEDGER
    }
    undo(files)
    assert snapshot(tmp_path) == before


def test_taking_back_can_be_tried_again(tmp_path: Path) -> None:
    """A program that fails after the files were restored leaves the ledger, and with it the program to run."""
    files = host(tmp_path, NOT_YET, DEBIAN)
    before = snapshot(tmp_path)
    apply(files)
    ledger = Ledger(files)
    ledger.restore(ledger.reversal()[0])

    again = Ledger(files)
    changes, commands = again.reversal()
    assert changes == []
    assert [str(command) for command in commands] == ["update-grub"]
    again.forget()
    assert snapshot(tmp_path) == before


def test_a_link_in_a_files_place_is_refused(tmp_path: Path) -> None:
    """What it leads to may be shared with others."""
    files = host(tmp_path, {"proc/cmdline": "ro\n"}, SYSTEMD_BOOT)
    cmdline = tmp_path / "etc/kernel/cmdline"
    cmdline.rename(tmp_path / "etc/kernel/shared")
    cmdline.symlink_to("shared")
    with pytest.raises(PreparationRefused, match="is a link"):
        apply(files)


@pytest.mark.parametrize("change", ["rewritten", "emptied"])
def test_what_was_changed_since_is_not_taken_back(change: str, tmp_path: Path) -> None:
    """The administrator's later edit is worth more than the state before it; nothing else is touched either."""
    files = host(tmp_path, NOT_YET, DEBIAN)
    apply(files)
    if change == "rewritten":
        (tmp_path / DROP_IN).write_text("GRUB_CMDLINE_LINUX_DEFAULT=mine\n")
    else:
        (tmp_path / MODPROBE).write_text("")
    before = snapshot(tmp_path)
    with pytest.raises(PreparationRefused, match="since this command wrote it"):
        undo(files)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"format": 2}', '{"format": 1, "directories": 3}'])
def test_a_ledger_that_is_none_is_refused(content: str, tmp_path: Path) -> None:
    """It is never guessed what was there."""
    files = host(tmp_path, NOT_YET, DEBIAN, {LEDGER: content})
    with pytest.raises(PreparationRefused, match="cannot be read"):
        Ledger(files)


@pytest.mark.parametrize("crash", range(6))
def test_a_crash_in_the_middle_can_be_taken_back(crash: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever write is the last one, undo brings back what was there; a new apply would finish instead."""
    files = host(tmp_path, NOT_YET, DEBIAN)
    before = snapshot(tmp_path)
    plan = make_plan(files, SEV)
    assert len(plan.changes.files) + 1 == 5  # and the ledger
    written = 0

    def write_until_the_crash(path: Path, content: bytes, *, mode: int = 0o600) -> None:
        nonlocal written
        if written == crash:
            raise OSError(28, "No space left on device", str(path))
        write_durably(path, content, mode=mode)
        written += 1

    monkeypatch.setattr("sev_agent.host.preparation.ledger.write_durably", write_until_the_crash)
    if crash < 5:
        with pytest.raises(PreparationFailed, match="No space left"):
            Ledger(files).apply(plan.changes.files, plan.changes.undo)
    else:
        Ledger(files).apply(plan.changes.files, plan.changes.undo)
    monkeypatch.undo()

    undo(files)

    after = snapshot(tmp_path)
    if crash:
        assert after == before
    else:  # the ledger itself could not be written: empty directories are all that can be left
        assert {name for name in after if (tmp_path / name).is_file()} == {
            name for name in before if (tmp_path / name).is_file()
        }


def test_a_crash_between_two_generations_can_be_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file may still be as the apply before left it."""
    files = host(tmp_path, NOT_YET, DEBIAN)
    before = snapshot(tmp_path)
    apply(files, SEV)

    def write_the_ledger_only(path: Path, content: bytes, *, mode: int = 0o600) -> None:
        if path.name != "ledger.json":
            raise OSError(5, "Input/output error", str(path))
        write_durably(path, content, mode=mode)

    monkeypatch.setattr("sev_agent.host.preparation.ledger.write_durably", write_the_ledger_only)
    with pytest.raises(PreparationFailed):
        apply(files, SNP)
    monkeypatch.undo()

    undo(files)
    assert snapshot(tmp_path) == before
