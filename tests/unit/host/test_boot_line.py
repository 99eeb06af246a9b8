"""Boot lines, as the kernel and the boot loaders read them."""

from pathlib import Path

import pytest

from sev_agent.host.boot_line import BootLine, next_boot
from sev_agent.hypervisor.host_files import HostFiles


def write(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("quiet kvm_amd.sev=1", "1"),
        ("kvm-amd.sev=1", "1"),
        ("kvm_amd.sev=0 kvm_amd.sev=1", "1"),
        ("kvm_amd.sev=1 kvm_amd.sev=0", "0"),
        ("kvm_amd.sev", ""),
        ('kvm_amd.sev="1"', "1"),
        ('dyndbg="a kvm_amd.sev=1"', None),
        ("xkvm_amd.sev=1", None),
        ("quiet -- kvm_amd.sev=1", None),
        ("", None),
    ],
)
def test_values(line: str, value: str | None) -> None:
    """The last of a name counts, dashes are underscores, quotes hold words together, what follows -- is init's."""
    assert BootLine.parse(line).value("kvm_amd.sev") == value


def test_grubs_entries_for_the_next_boot(tmp_path: Path) -> None:
    """All linux lines but those for repair."""
    write(
        tmp_path,
        "boot/grub/grub.cfg",
        "menuentry 'a' {\n\tlinux\t/vmlinuz-6.12 ro quiet mem_encrypt=on\n}\n"
        "menuentry 'a (recovery mode)' {\n\tlinux\t/vmlinuz-6.12 ro single\n}\n"
        "menuentry 'b' {\n\tlinuxefi /vmlinuz-6.1 ro\n}\n",
    )
    lines = [entry.line.words for entry in next_boot(HostFiles(tmp_path))]
    assert lines == [("ro", "quiet", "mem_encrypt=on"), ("ro",)]


def test_boot_loader_entries(tmp_path: Path) -> None:
    """Red Hat's, where grub.cfg only says blscfg, with the options that they share; without the rescue entry."""
    write(tmp_path, "boot/grub2/grub.cfg", "insmod blscfg\nblscfg\n")
    write(tmp_path, "boot/grub2/grubenv", "# GRUB Environment Block\nkernelopts=ro mem_encrypt=on\n####")
    write(tmp_path, "boot/loader/entries/0-6.12.conf", "title RHEL\nlinux /vmlinuz\noptions $kernelopts quiet\n")
    write(tmp_path, "boot/loader/entries/0-rescue.conf", "title rescue\noptions ro\n")
    write(tmp_path, "boot/loader/entries/note.txt", "options ro\n")
    entries = next_boot(HostFiles(tmp_path))
    assert [entry.line.words for entry in entries] == [("ro", "mem_encrypt=on", "quiet")]
    assert entries[0].source.endswith("0-6.12.conf")


def test_a_host_without_a_known_boot_loader(tmp_path: Path) -> None:
    """Nothing is claimed of it."""
    assert next_boot(HostFiles(tmp_path)) == []
