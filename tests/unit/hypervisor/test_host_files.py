"""Files of a host are read below its root, and nowhere else."""

import gzip
import os
from pathlib import Path

import pytest

from sev_agent.hypervisor.host_files import MAX_BYTES, HostFiles


def test_a_link_out_of_the_root_is_as_absent(tmp_path: Path) -> None:
    """A captured tree does not show the machine that it is judged on."""
    (tmp_path / "secret").write_text("the machine's")
    root = tmp_path / "root"
    (root / "proc").mkdir(parents=True)
    (root / "proc/cmdline").symlink_to(tmp_path / "secret")
    (root / "proc/version").symlink_to("../../secret")
    files = HostFiles(root)

    assert files.text_or_none("proc/cmdline") is None
    assert files.text_or_none("proc/version") is None
    assert files.text_or_none("../secret") is None
    assert files.node("proc/cmdline") is None
    assert not files.exists("proc/cmdline")


def test_a_link_within_the_root_is_followed(tmp_path: Path) -> None:
    """As systems have them: /lib is a link to usr/lib."""
    (tmp_path / "usr/lib").mkdir(parents=True)
    (tmp_path / "usr/lib/a").write_text("text")
    (tmp_path / "lib").symlink_to("usr/lib")
    assert HostFiles(tmp_path).text("lib/a") == "text"


def test_a_loop_of_links_is_absent(tmp_path: Path) -> None:
    """It neither hangs nor ends the command."""
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    assert HostFiles(tmp_path).text_or_none("a") is None


def test_reading_stops_at_a_bound(tmp_path: Path) -> None:
    """A file without end, packed or not, is read in part."""
    os.truncate(os.open(tmp_path / "long", os.O_CREAT | os.O_WRONLY), 1 << 40)
    (tmp_path / "packed.gz").write_bytes(gzip.compress(bytes(3 * MAX_BYTES)))
    files = HostFiles(tmp_path)
    assert len(files.text("long")) == MAX_BYTES
    assert len(files.unpacked("packed.gz")) == MAX_BYTES


@pytest.mark.parametrize(
    "content", [b"", b"no gzip", gzip.compress(b"cut off")[:-9], gzip.compress(b"")[:10] + b"\xff" * 20]
)
def test_a_broken_gzip_file_is_an_error_of_reading(tmp_path: Path, content: bytes) -> None:
    """Whatever stands there, the examination goes on."""
    (tmp_path / "config.gz").write_bytes(content)
    if content:
        with pytest.raises(OSError, match=r"config\.gz|gzip"):
            HostFiles(tmp_path).unpacked("config.gz")
    else:
        assert HostFiles(tmp_path).unpacked("config.gz") == ""


def test_names_are_sorted_and_an_absent_directory_is_empty(tmp_path: Path) -> None:
    """What has no directory has no files."""
    for name in ("b", "a"):
        (tmp_path / name).touch()
    assert HostFiles(tmp_path).names("") == ["a", "b"]
    assert HostFiles(tmp_path).names("nowhere") == []
