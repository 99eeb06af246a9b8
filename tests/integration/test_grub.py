"""``sev-agent prepare`` on a real GRUB configuration, which the real ``grub-mkconfig`` reads."""

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

# Debian's own /etc/default/grub, with what a cloud image's drop-in sets over it.
SETTINGS = """\
# If you change this file, run 'update-grub' afterwards to update
# /boot/grub/grub.cfg.
GRUB_DEFAULT=0
GRUB_TIMEOUT=5
GRUB_DISTRIBUTOR=`( . /etc/os-release; echo ${NAME:-Debian} ) 2>/dev/null || echo Debian`
GRUB_CMDLINE_LINUX_DEFAULT="quiet"
GRUB_CMDLINE_LINUX=""
"""
CLOUD = 'GRUB_CMDLINE_LINUX_DEFAULT="console=tty0 console=ttyS0,115200"\n'

# grub-probe asks the devices below / and /boot, which a scratch root and a container do not have.
PROBE = """\
#!/bin/sh
for argument; do
  case $argument in
    --target=device) echo /dev/vda1; exit;;
    --target=fs) echo ext2; exit;;
    --target=partmap) echo gpt; exit;;
    --target=fs_uuid) echo 0b7c8d7e-0000-4000-8000-000000000001; exit;;
    --target=abstraction|--target=drive) exit;;
  esac
done
"""

MKCONFIG = """\
set -eu
mount --bind "$1/etc/default" /etc/default
mount --bind "$1/boot" /boot
mount --bind "$1/grub-probe" /usr/sbin/grub-probe
exec /usr/sbin/grub-mkconfig -o /boot/grub/grub.cfg
"""


def grub_mkconfig(root: Path) -> bytes:
    """Run it in a mount namespace of its own, where the scratch root's settings stand in their fixed places."""
    command = ("unshare", "--mount", "sh", "-c", MKCONFIG, "sh", str(root))
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return (root / "boot/grub/grub.cfg").read_bytes()


@pytest.fixture
def files(tmp_path: Path) -> HostFiles:
    host = contents("fourth-generation") | {
        "proc/cmdline": "ro quiet\n",
        "etc/default/grub": SETTINGS,
        "etc/default/grub.d/50-cloudimg-settings.cfg": CLOUD,
        "usr/sbin/grub-mkconfig": Path("/usr/sbin/grub-mkconfig").read_text(),
        "boot/vmlinuz-6.12.41+deb13-amd64": "",
        "boot/initrd.img-6.12.41+deb13-amd64": "",
        "grub-probe": PROBE,
    }
    unpack(host, tmp_path)
    (tmp_path / "grub-probe").chmod(0o755)
    return HostFiles(tmp_path)


@pytest.mark.parametrize("generation", Generation)
def test_grub_reads_what_prepare_wrote(files: HostFiles, generation: Generation) -> None:
    """Every entry that is not for repair has the words; after undo grub.cfg is byte for byte what it was."""
    before = grub_mkconfig(files.root)
    wanted = words(generation, files)
    assert all(missing(entry.line, wanted) for entry in next_boot(files))

    plan = make_plan(files, generation)
    Ledger(files).apply(plan.changes.files, plan.changes.undo)
    grub_mkconfig(files.root)

    entries = next_boot(files)
    assert entries
    for entry in entries:
        assert missing(entry.line, wanted) == ()
        assert entry.line.value("console") == "ttyS0,115200"  # the cloud image's own words are kept
    assert not make_plan(files, generation).changes

    ledger = Ledger(files)
    changes, _ = ledger.reversal()
    ledger.restore(changes)
    ledger.forget()
    assert grub_mkconfig(files.root) == before
