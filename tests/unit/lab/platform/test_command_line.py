import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sev_agent.lab.platform.emulator.command_line import Launch, Monitor, rewrite

PFLASH = '{"driver":"file","filename":"/usr/share/OVMF/OVMF_CODE_4M.fd","node-name":"libvirt-pflash0-storage"}'
SCSI = '{"driver":"virtio-scsi-pci","iommu_platform":true,"id":"scsi0","bus":"pci.2","addr":"0x0"}'
SEV = '{"qom-type":"sev-guest","id":"lsec0","cbitpos":51,"reduced-phys-bits":1,"policy":51}'
SECRET = '{"qom-type":"secret","id":"masterKey0","format":"raw","file":"/m"}'

# As libvirt 11.3 starts a guest, without the devices that are of no interest here.
START = [
    *("-name", "guest=g1,debug-threads=on", "-S", "-object", SECRET, "-blockdev", PFLASH),
    *("-machine", "pc-q35-10.0,usb=off,confidential-guest-support=lsec0,pflash0=libvirt-pflash0-format,acpi=on"),
    *("-accel", "tcg", "-cpu", "qemu64", "-m", "size=262144k", "-overcommit", "mem-lock=on"),
    *("-uuid", "11111111-2222-4333-8444-555555555501", "-no-user-config", "-nodefaults"),
    *("-chardev", "socket,id=charmonitor,fd=19,server=on,wait=off"),
    *("-mon", "chardev=charmonitor,id=monitor,mode=control", "-device", SCSI, "-object", SEV),
    *("-sandbox", "on,obsolete=deny", "-msg", "timestamp=on"),
]
PROBE = [
    *("-S", "-no-user-config", "-nodefaults", "-nographic", "-machine", "none,accel=kvm:tcg"),
    *("-qmp", "unix:/var/lib/libvirt/qemu/qmp-XY/qmp.monitor,server=on,wait=off"),
    *("-pidfile", "/var/lib/libvirt/qemu/qmp-XY/qmp.pid", "-daemonize"),
]


def test_a_start_loses_only_what_needs_the_processor() -> None:
    """Of libvirt's command line the SEV object, its use, the lock and the monitor's descriptor change, nothing else."""
    line = rewrite(START, 5)
    assert line.arguments == [
        *("-name", "guest=g1,debug-threads=on", "-S", "-object", SECRET, "-blockdev", PFLASH),
        *("-machine", "pc-q35-10.0,usb=off,pflash0=libvirt-pflash0-format,acpi=on"),
        *("-accel", "tcg", "-cpu", "qemu64", "-m", "size=262144k"),
        *("-uuid", "11111111-2222-4333-8444-555555555501", "-no-user-config", "-nodefaults"),
        *("-chardev", "socket,id=charmonitor,fd=5,server=on,wait=off"),
        *("-mon", "chardev=charmonitor,id=monitor,mode=control", "-device", SCSI),
        *("-sandbox", "on,obsolete=deny", "-msg", "timestamp=on"),
    ]
    assert line.monitor == Monitor(descriptor=19)


def test_a_start_says_what_is_launched() -> None:
    """The launch has the object's kind and policy, the guest's names, and the firmware that would be measured."""
    assert rewrite(START, 5).launch == Launch(
        kind="sev-guest",
        policy=0x33,
        firmware="/usr/share/OVMF/OVMF_CODE_4M.fd",
        name="g1",
        uuid="11111111-2222-4333-8444-555555555501",
    )


def test_a_launch_from_memory_is_known() -> None:
    """A SEV-SNP guest's firmware is mapped as memory; its object goes the way of the others'."""
    snp = '{"qom-type":"sev-snp-guest","id":"lsec0","cbitpos":51,"policy":196608,"kernel-hashes":true}'
    line = rewrite(["-bios", "/usr/share/ovmf/OVMF.fd", "-kernel", "/boot/vmlinuz", "-object", snp], 3)
    assert line.arguments == ["-bios", "/usr/share/ovmf/OVMF.fd", "-kernel", "/boot/vmlinuz"]
    launch = line.launch
    assert launch is not None
    assert (launch.is_snp, launch.policy, launch.firmware) == (True, 0x30000, "/usr/share/ovmf/OVMF.fd")
    assert (launch.is_flash, launch.kernel, launch.kernel_hashes) == (False, "/boot/vmlinuz", True)


def test_a_probe_listens_where_libvirt_will_ask() -> None:
    """The path of the monitor is taken over, KVM is not offered, and the rest stays."""
    line = rewrite(PROBE, 3)
    assert line.monitor == Monitor(path="/var/lib/libvirt/qemu/qmp-XY/qmp.monitor")
    assert line.launch is None
    assert line.arguments == [
        *("-S", "-no-user-config", "-nodefaults", "-nographic", "-machine", "none,accel=tcg"),
        *("-chardev", "socket,id=charmonitor,fd=3,server=on,wait=off", "-mon", "chardev=charmonitor,mode=control"),
        *("-pidfile", "/var/lib/libvirt/qemu/qmp-XY/qmp.pid", "-daemonize"),
    ]


@pytest.mark.parametrize(
    ("value", "kept"),
    [("mem-lock=on", []), ("mem-lock=on,cpu-pm=on", ["-overcommit", "cpu-pm=on"])],
)
def test_memory_is_not_locked(value: str, kept: list[str]) -> None:
    """Of what is said on memory only the lock is taken out."""
    assert rewrite(["-overcommit", value], 3).arguments == kept


@pytest.mark.parametrize("policy", [0x37, "0x37"])
def test_reads_every_form_of_an_object(policy: int | str) -> None:
    """The object may be in JSON or in QEMU's older form."""
    in_json = json.dumps({"qom-type": "sev-guest", "id": "a", "policy": policy})
    for text in (in_json, f"sev-guest,id=a,policy={policy}"):
        launch = rewrite(["-object", text], 3).launch
        assert launch is not None
        assert launch.policy == 0x37


def test_without_a_monitor_there_is_none() -> None:
    """A call for the version or help is nobody's guest."""
    line = rewrite(["--version"], 3)
    assert (line.arguments, line.monitor, line.launch) == (["--version"], None, None)


@given(st.lists(st.text().map(lambda text: f"x{text}") | st.sampled_from(["-S", "-device", "-netdev", SCSI, ""])))
def test_passes_what_it_does_not_know(arguments: list[str]) -> None:
    """Arguments that are no business of the simulation pass unchanged, whatever they are."""
    assert rewrite(arguments, 3).arguments == arguments
