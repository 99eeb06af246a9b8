"""Files that are whole, old or new, at every moment."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sev_agent.crash_points import VARIABLE
from sev_agent.durable import discard_unfinished, make_directory, write_durably


def test_new_and_replaced(tmp_path: Path) -> None:
    """The content is what was written last, readable by its owner alone, and nothing is left beside it."""
    path = tmp_path / "file"

    write_durably(path, b"old")
    write_durably(path, b"new")

    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_mode(tmp_path: Path) -> None:
    """The mode that is asked for holds whatever the process's mask says."""
    before = os.umask(0o077)
    try:
        write_durably(tmp_path / "file", b"", mode=0o644)
    finally:
        os.umask(before)

    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("step", ["fchmod", "fsync", "replace"])
def test_failure_at_each_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """Whatever fails, the old content stands and no temporary file is left."""
    path = tmp_path / "file"
    write_durably(path, b"old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    if step == "replace":
        monkeypatch.setattr(Path, "replace", fail)
    else:
        monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match="No space left"):
        write_durably(path, b"new")

    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_order_of_syncs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is synced before it gets its name, its directory after: no power loss shows an empty file."""
    order: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def record_fsync(descriptor: int) -> None:
        order.append("directory" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "file")  # noqa: PTH112
        fsync(descriptor)

    def record_replace(self: Path, target: Path) -> Path:
        order.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(Path, "replace", record_replace)
    write_durably(tmp_path / "file", b"new")

    assert order == ["file", "rename", "directory"]


def test_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new directory's name, and those of what was missing above it, are synced; one that is there costs nothing."""
    synced: list[Path] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(Path(f"/proc/self/fd/{descriptor}").readlink()))
    wanted = tmp_path / "one" / "two"

    make_directory(wanted, mode=0o700)
    assert sorted(synced) == [tmp_path, tmp_path / "one"]
    make_directory(wanted)

    assert wanted.stat().st_mode & 0o777 == 0o700
    assert len(synced) == 2


@pytest.mark.parametrize(
    ("point", "content"),
    [("durable.before_sync", b"old"), ("durable.before_rename", b"old"), ("durable.after_rename", b"new")],
)
def test_what_a_kill_leaves(tmp_path: Path, point: str, content: bytes) -> None:
    """Whenever a writer is killed, the file is the old or the new one, and what else it left is found and removed."""
    path = tmp_path / "file"
    write_durably(path, b"old")
    (tmp_path / ".profile").write_bytes(b"somebody's")

    program = "import sys, pathlib, sev_agent.durable as d; d.write_durably(pathlib.Path(sys.argv[1]), b'new')"
    ended = subprocess.run(
        [sys.executable, "-c", program, path], env={**os.environ, VARIABLE: point}, check=False, timeout=60
    )
    assert ended.returncode == -signal.SIGKILL
    discard_unfinished(tmp_path)

    assert path.read_bytes() == content
    assert sorted(found.name for found in tmp_path.iterdir()) == [".profile", "file"]
