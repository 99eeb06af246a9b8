"""What ``sev-agent prepare`` changes below a root."""

from pathlib import Path

import pytest

from sev_agent.host.layer import Layer
from sev_agent.host.preparation.arguments import PreparationRefused
from sev_agent.host.preparation.boot_loader import DROP_IN
from sev_agent.host.preparation.change import FileChange
from sev_agent.host.preparation.drop_ins import MARK, MODPROBE
from sev_agent.host.preparation.plan import make_plan
from sev_agent.hypervisor.host_files import HostFiles
from sev_agent.sev.generation import Generation
from tests.hosts import unpack
from tests.unit.host.unprepared_hosts import DEBIAN, ES, NOT_YET, RED_HAT, SEV, SNP, SYSTEMD_BOOT, apply, host, snapshot


def test_debians_grub_gets_a_drop_in(tmp_path: Path) -> None:
    """The administrator's own file is left alone; the boot loader's file is written by its own program."""
    files = host(tmp_path, NOT_YET, DEBIAN)
    plan = apply(files)
    assert (tmp_path / "etc/default/grub").read_text() == DEBIAN["etc/default/grub"]
    assert (tmp_path / DROP_IN).read_text() == (
        f'{MARK}\nGRUB_CMDLINE_LINUX_DEFAULT="$GRUB_CMDLINE_LINUX_DEFAULT mem_encrypt=on kvm_amd.sev=1"\n'
    )
    assert [str(command) for command in plan.changes.commands] == ["update-grub"]


def test_red_hats_grubby_is_told(tmp_path: Path) -> None:
    """It keeps all of its own files in step; what it adds it takes away again."""
    files = host(tmp_path, {"proc/cmdline": "ro\n"}, RED_HAT)
    plan = make_plan(files, SNP)
    words = "mem_encrypt=on kvm_amd.sev=1 kvm_amd.sev_es=1 kvm_amd.sev_snp=1"
    assert [command.arguments for command in plan.changes.commands] == [
        ("grubby", "--update-kernel=ALL", f"--args={words}")
    ]
    assert [command.arguments for command in plan.changes.undo] == [
        ("grubby", "--update-kernel=ALL", f"--remove-args={words}")
    ]


def test_systemd_boots_entries_and_those_to_come(tmp_path: Path) -> None:
    """/etc/kernel/cmdline for the next kernel, the entries for those that are there, none for repair."""
    files = host(tmp_path, {"proc/cmdline": "ro\n"}, SYSTEMD_BOOT)
    apply(files)
    assert (tmp_path / "etc/kernel/cmdline").read_text() == "root=UUID=0b7c rw quiet mem_encrypt=on kvm_amd.sev=1\n"
    entry = (tmp_path / "efi/loader/entries/ab-6.12.conf").read_text()
    assert entry == (
        "title Arch\nlinux /vmlinuz\noptions root=UUID=0b7c rw mem_encrypt=on kvm_amd.sev=1\noptions quiet\n"
    )
    rescue = "efi/loader/entries/ab-rescue.conf"
    assert (tmp_path / rescue).read_text() == SYSTEMD_BOOT[rescue]


@pytest.mark.parametrize(
    ("generation", "options"),
    [(SEV, "sev=1"), (ES, "sev=1 sev_es=1 sev_snp=0"), (SNP, "sev=1 sev_es=1 sev_snp=1")],
)
def test_the_modules_options(generation: Generation, options: str, tmp_path: Path) -> None:
    """SEV-ES switches SEV-SNP off, which would shut it out; the secure processor's driver comes first."""
    files = host(tmp_path, NOT_YET, DEBIAN)
    apply(files, generation)
    assert (tmp_path / MODPROBE).read_text().splitlines()[2:] == [
        "softdep kvm_amd pre: ccp",
        f"options kvm_amd {options}",
    ]


def test_limits_for_the_libvirt_that_is_there(tmp_path: Path) -> None:
    """The slice of all guests, and the daemon that is installed."""
    files = host(tmp_path, NOT_YET, DEBIAN)
    apply(files)
    drop_ins = sorted(str(path.relative_to(tmp_path)) for path in (tmp_path / "etc/systemd").rglob("*.conf"))
    assert drop_ins == [
        "etc/systemd/system/machine.slice.d/90-sev-agent.conf",
        "etc/systemd/system/virtqemud.service.d/90-sev-agent.conf",
    ]
    assert "LimitMEMLOCK=infinity\n" in (tmp_path / drop_ins[1]).read_text()


@pytest.mark.parametrize(
    ("system", "files", "generation", "said"),
    [
        (DEBIAN, {"etc/default/grub": 'GRUB_CMDLINE_LINUX="kvm_amd.sev=0"\n'}, SEV, "kvm_amd.sev=0"),
        (DEBIAN, {"etc/default/grub.d/50.cfg": "GRUB_CMDLINE_LINUX='mem_encrypt=off'\n"}, SEV, "mem_encrypt=off"),
        (DEBIAN, {"etc/default/grub": 'GRUB_CMDLINE_LINUX_DEFAULT="iommu=pt"\n'}, SNP, "iommu=pt"),
        (DEBIAN, {"etc/default/grub.d/zz.cfg": 'GRUB_CMDLINE_LINUX_DEFAULT="quiet"\n'}, SEV, "is read after"),
        (DEBIAN, {"usr/sbin/grub-mkconfig": ". /etc/default/grub\n"}, SEV, "does not read"),
        (DEBIAN, {DROP_IN: "GRUB_TIMEOUT=1\n"}, SEV, "did not write it"),
        (DEBIAN, {MODPROBE: "options kvm_amd sev=1\n"}, SEV, "did not write it"),
        (DEBIAN, {"etc/modprobe.d/a.conf": "options kvm-amd sev=0\n"}, SEV, "options kvm_amd sev=0"),
        (RED_HAT, {"boot/loader/entries/a.conf": "options mem_encrypt=off\n"}, SEV, "mem_encrypt=off"),
        (SYSTEMD_BOOT, {"etc/kernel/cmdline": "kvm_amd.sev=off\n"}, SEV, "kvm_amd.sev=off"),
        ({}, {}, SEV, "no boot loader"),
    ],
)
def test_refusals(
    system: dict[str, str], files: dict[str, str], generation: Generation, said: str, tmp_path: Path
) -> None:
    """What somebody must have meant, and what is not understood, is refused with what to do; nothing is changed."""
    found = host(tmp_path, {"proc/cmdline": "ro\n"}, system, files)
    before = snapshot(tmp_path)
    with pytest.raises(PreparationRefused) as refused:
        make_plan(found, generation)
    assert said in str(refused.value)
    assert refused.value.remedy
    assert snapshot(tmp_path) == before


def test_grubs_leftover_settings_are_not_taken_for_the_boot_loader(tmp_path: Path) -> None:
    """Where kernel-install writes entries and there is no grub.cfg, GRUB does not start this host."""
    files = host(tmp_path, {"proc/cmdline": "ro\n"}, DEBIAN, SYSTEMD_BOOT)
    apply(files)
    assert not (tmp_path / DROP_IN).exists()
    assert "mem_encrypt=on" in (tmp_path / "etc/kernel/cmdline").read_text()


def test_why_a_reboot_is_needed(tmp_path: Path) -> None:
    """The boot line in effect, and the module's parameters, each with what they are now."""
    files = host(tmp_path, NOT_YET, DEBIAN)
    words = "mem_encrypt=on kvm_amd.sev=1 kvm_amd.sev_es=1 kvm_amd.sev_snp=1"
    assert make_plan(files, SNP).reboot == (
        f"the kernel reads its boot line only when it starts, and this one has no {words}",
        "kvm_amd takes sev_snp=1 only when it is loaded, and has N now",
    )


def test_no_reboot_where_all_is_in_effect(tmp_path: Path) -> None:
    """A host that runs as it shall needs none, whatever file is added."""
    assert make_plan(host(tmp_path, DEBIAN), SEV).reboot == ()


@pytest.mark.parametrize(
    ("base", "generation", "said"),
    [("intel", SEV, "GenuineIntel"), ("virtual-machine", SEV, "virtual machine"), ("second-generation", SNP, "bit 4")],
)
def test_a_host_that_can_never_be_ready_is_left_alone(
    base: str, generation: Generation, said: str, tmp_path: Path
) -> None:
    """What the processor lacks no setting gives: it is refused, and says why."""
    with pytest.raises(PreparationRefused, match=said):
        make_plan(host(tmp_path, DEBIAN, base=base), generation)


def test_a_system_that_does_not_run_is_prepared(tmp_path: Path) -> None:
    """An image that is being made has no /proc: all is in effect at its first boot."""
    files = HostFiles(unpack(DEBIAN, tmp_path))
    plan = apply(files)
    assert (tmp_path / DROP_IN).exists()
    assert plan.reboot == ("the system below this root does not run: it starts with what is written now",)


def test_what_no_command_can_set_is_told(tmp_path: Path) -> None:
    """The BIOS's menu path and the kernel's options, for the generation that is wanted; nothing of other layers."""
    files = host(
        tmp_path, NOT_YET, DEBIAN, {"boot/config-6.12.41+deb13-amd64": "CONFIG_KVM_AMD=m\n"}, base="third-generation"
    )
    by_hand = make_plan(files, SNP).by_hand
    assert {result.check.layer for result in by_hand} == {Layer.BIOS, Layer.KERNEL_BUILD}
    told = {result.check.name: result.finding.remedy for result in by_hand}
    assert told["bios.rmp"].startswith("BIOS: ")
    assert "SEV-SNP Support" in told["bios.rmp"]
    assert "CONFIG_AMD_MEM_ENCRYPT" in told["kernel.amd_mem_encrypt"]


def test_the_diff_is_unified() -> None:
    """So that patch could apply it, also where a file has no newline at its end."""
    assert FileChange(path="etc/kernel/cmdline", before=b"ro", after=b"ro a=1\n").diff() == (
        "--- a/etc/kernel/cmdline\n+++ b/etc/kernel/cmdline\n@@ -1 +1 @@\n-ro\n\\ No newline at end of file\n+ro a=1\n"
    )
    assert FileChange(path="a", before=None, after=b"x\n").diff() == "--- /dev/null\n+++ b/a\n@@ -0,0 +1 @@\n+x\n"
