"""``sev-agent prepare`` where systemd-boot starts the host, beside the real ``kernel-install``."""

import os
import subprocess
from pathlib import Path

import pytest

from sev_agent.host.boot_line import next_boot
from sev_agent.host.preparation.arguments import missing, words
from sev_agent.host.preparation.ledger import Ledger
from sev_agent.host.preparation.plan import make_plan
from sev_agent.hypervisor.host_files import HostFiles
from sev_agent.sev.generation import Generation
from tests.hosts import contents, unpack

OLD, NEW = "6.12.41+deb13-amd64", "6.12.48+deb13-amd64"
PLUGIN = "/usr/lib/kernel/install.d/90-loaderentry.install"


def kernel_install(root: Path, verb: str, version: str) -> None:
    """Install or remove a kernel as the package's scripts do: an entry for systemd-boot is written below ``root``."""
    environment = {
        **os.environ,
        "KERNEL_INSTALL_CONF_ROOT": str(root / "etc/kernel"),
        "KERNEL_INSTALL_PLUGINS": PLUGIN,
        "BOOT_ROOT": str(root / "efi"),
        "MACHINE_ID": "0123456789abcdef0123456789abcdef",
    }
    image = [str(root / "vmlinuz")] if verb == "add" else []
    command = ["kernel-install", verb, version, *image]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr


def entries(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (root / "efi/loader/entries").iterdir()}


@pytest.fixture
def files(tmp_path: Path) -> HostFiles:
    host = contents("fourth-generation") | {
        "proc/cmdline": "root=UUID=0b7c rw quiet\n",
        "etc/kernel/cmdline": "root=UUID=0b7c rw quiet\n",
        "etc/kernel/install.conf": "layout=bls\n",
        "etc/kernel/entry-token": "debian\n",
        "vmlinuz": "no kernel\n",
    }
    host.pop("boot/grub/grub.cfg")
    unpack(host, tmp_path)
    for name in ("loader/entries", "debian"):
        (tmp_path / "efi" / name).mkdir(parents=True)
    kernel_install(tmp_path, "add", OLD)
    return HostFiles(tmp_path)


@pytest.mark.parametrize("generation", Generation)
def test_kernels_that_are_there_and_those_to_come(files: HostFiles, generation: Generation) -> None:
    """Both boot with the words, whichever kernel-install writes; after undo its entries are byte for byte as before."""
    before, wanted = entries(files.root), words(generation, files)
    assert before
    assert all(missing(entry.line, wanted) for entry in next_boot(files))

    plan = make_plan(files, generation)
    Ledger(files).apply(plan.changes.files, plan.changes.undo)
    kernel_install(files.root, "add", NEW)

    prepared = next_boot(files)
    assert len(prepared) == len(before) + 1
    for entry in prepared:
        assert missing(entry.line, wanted) == ()
        assert entry.line.value("root") == "UUID=0b7c"
    assert not make_plan(files, generation).changes

    kernel_install(files.root, "remove", NEW)
    ledger = Ledger(files)
    changes, _ = ledger.reversal()
    ledger.restore(changes)
    ledger.forget()
    assert entries(files.root) == before
    kernel_install(files.root, "add", OLD)
    assert entries(files.root) == before
