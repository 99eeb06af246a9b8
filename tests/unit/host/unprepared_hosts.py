"""Hosts that are not prepared yet, and what preparing and taking back make of their files."""

import stat
from pathlib import Path

from sev_agent.host.preparation.ledger import Ledger
from sev_agent.host.preparation.plan import Plan, make_plan
from sev_agent.hypervisor.host_files import HostFiles
from sev_agent.sev.generation import Generation
from tests.hosts import contents, unpack

SEV, ES, SNP = Generation

DEBIAN = {
    "etc/os-release": 'PRETTY_NAME="Debian GNU/Linux 13 (trixie)"\nID=debian\n',
    "etc/default/grub": 'GRUB_DEFAULT=0\nGRUB_TIMEOUT=5\nGRUB_CMDLINE_LINUX_DEFAULT="quiet"\nGRUB_CMDLINE_LINUX=""\n',
    "usr/lib/systemd/system/virtqemud.service": "[Service]\n",
}
RED_HAT = {
    "usr/sbin/grubby": "#!/bin/sh\n",
    "etc/default/grub": 'GRUB_CMDLINE_LINUX="rhgb quiet"\nGRUB_ENABLE_BLSCFG=true\n',
    "boot/grub2/grub.cfg": "insmod blscfg\nblscfg\n",
    "boot/loader/entries/ab-6.12.conf": "title RHEL\nlinux /vmlinuz-6.12\noptions root=/dev/sda1 ro quiet\n",
}
SYSTEMD_BOOT = {
    "etc/kernel/cmdline": "root=UUID=0b7c rw quiet",
    "efi/loader/entries/ab-6.12.conf": "title Arch\nlinux /vmlinuz\noptions root=UUID=0b7c rw\noptions quiet\n",
    "efi/loader/entries/ab-rescue.conf": "title rescue\noptions root=UUID=0b7c rw single\n",
}
NOT_YET = {
    "proc/cmdline": "BOOT_IMAGE=/boot/vmlinuz root=UUID=0b7c ro quiet\n",
    "boot/grub/grub.cfg": "menuentry 'Debian' {\n\tlinux /boot/vmlinuz root=UUID=0b7c ro quiet\n}\n",
}


def host(root: Path, *parts: dict[str, str], base: str = "third-generation") -> HostFiles:
    files = contents(base)
    files.pop("boot/grub/grub.cfg")
    for part in parts:
        files |= part
    return HostFiles(unpack(files, root))


def snapshot(root: Path) -> dict[str, tuple[int, bytes]]:
    """Every file and directory below the root: its permissions and content."""
    return {
        str(path.relative_to(root)): (
            stat.S_IMODE(path.stat().st_mode),
            path.read_bytes() if path.is_file() else b"",
        )
        for path in root.rglob("*")
    }


def apply(files: HostFiles, generation: Generation = SEV) -> Plan:
    plan = make_plan(files, generation)
    Ledger(files).apply(plan.changes.files, plan.changes.undo)
    return plan


def undo(files: HostFiles) -> None:
    ledger = Ledger(files)
    changes, _ = ledger.reversal()
    ledger.restore(changes)
    ledger.forget()
