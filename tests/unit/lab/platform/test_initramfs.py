import subprocess
from pathlib import Path

import pytest

from sev_agent.lab.platform import initramfs


def module(*needed: str) -> bytes:
    return b"\x7fELF\0license=GPL\0depends=" + ",".join(needed).encode() + b"\0name=x\0"


def test_an_archive_is_read_by_cpio() -> None:
    """The archive holds the files with their modes and the directories above them, and is all root's."""
    content = initramfs.archive({"init": (0o755, b"#!\n"), "a/b/file": (0o644, b"12345")})
    listed = subprocess.run(["/usr/bin/cpio", "-itvn"], input=content, capture_output=True, check=True).stdout.decode()
    rows = [line.split() for line in listed.splitlines()]
    assert [(row[0], row[-1]) for row in rows] == [
        ("drwxr-xr-x", "a"),
        ("drwxr-xr-x", "a/b"),
        ("-rwxr-xr-x", "init"),
        ("-rw-r--r--", "a/b/file"),
    ]
    assert {(row[2], row[3]) for row in rows} == {("0", "0")}


def test_modules_come_after_what_they_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dependencies are loaded first, once, and what is built into the kernel is left out."""
    monkeypatch.setattr(initramfs, "MODULES", ("virtio_scsi", "virtio_pci", "isofs"))
    tree = tmp_path / "lib/modules/6.1"
    (tree / "kernel").mkdir(parents=True)
    (tree / "modules.builtin").write_text("kernel/fs/isofs/isofs.ko\n")
    for name, needed in {
        "virtio_scsi": ("scsi_mod", "virtio-ring"),
        "virtio_pci": ("virtio_ring",),
        "virtio-ring": (),
        "scsi_mod": (),
    }.items():
        (tree / f"kernel/{name}.ko").write_bytes(module(*needed))
    assert list(initramfs.ordered_modules(tmp_path, "6.1")) == ["scsi_mod", "virtio_ring", "virtio_scsi", "virtio_pci"]


def test_a_missing_module_is_named(tmp_path: Path) -> None:
    """A kernel without a module that the guest needs is refused by that module's name."""
    tree = tmp_path / "usr/lib/modules/6.1"
    tree.mkdir(parents=True)
    (tree / "modules.builtin").write_text("")
    with pytest.raises(LookupError, match="virtio_pci"):
        initramfs.ordered_modules(tmp_path, "6.1")
