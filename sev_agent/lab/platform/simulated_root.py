"""The files below ``/sys``, ``/proc``, ``/boot`` and ``/dev`` that a SEV host shows."""

import os
import stat
from collections.abc import Mapping
from pathlib import Path

MISC_DIRECTORY = Path("sys/fs/cgroup")
"""Where, below the root, ``misc.capacity`` and ``misc.current`` lie."""

_KERNEL = "6.12.0-sev-lab-amd64"
_PROCESSOR = """processor\t: {number}
vendor_id\t: AuthenticAMD
cpu family\t: 25
model\t\t: 1
model name\t: AMD EPYC 7543 32-Core Processor (simulated)
stepping\t: 1
flags\t\t: fpu vme de pse tsc msr pae mce cx8 apic sep svm npt nrip_save decodeassists sme sev sev_es
address sizes\t: 48 bits physical, 48 bits virtual

"""


def write_platform_root(root: Path, capacity: Mapping[str, int]) -> None:
    """Make ``root`` show a host with SEV. ``capacity`` counts guests by the misc controller's keys. Blocks."""
    snp = "N"
    files = {
        "SIMULATED": "A simulated SEV platform of a sev-agent lab: no memory is encrypted.\n",
        "sys/module/kvm_amd/parameters/sev": _flag(capacity.get("sev", 0)),
        "sys/module/kvm_amd/parameters/sev_es": _flag(capacity.get("sev_es", 0)),
        "sys/module/kvm_amd/parameters/sev_snp": f"{snp}\n",
        "proc/cmdline": f"BOOT_IMAGE=/boot/vmlinuz-{_KERNEL} root=/dev/sda1 ro mem_encrypt=on kvm_amd.sev=1\n",
        "proc/cpuinfo": "".join(_PROCESSOR.format(number=number) for number in range(os.cpu_count() or 1)),
        "proc/sys/kernel/osrelease": f"{_KERNEL}\n",
        f"boot/config-{_KERNEL}": (
            "CONFIG_AMD_MEM_ENCRYPT=y\n"
            "CONFIG_AMD_MEM_ENCRYPT_ACTIVE_BY_DEFAULT=y\n"
            "CONFIG_CGROUP_MISC=y\n"
            "CONFIG_CRYPTO_DEV_SP_PSP=y\n"
            "CONFIG_KVM_AMD=m\n"
            "CONFIG_KVM_AMD_SEV=y\n"
        ),
    }
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    (root / MISC_DIRECTORY).mkdir(parents=True, exist_ok=True)
    _device(root / "dev/sev")


def _flag(count: int) -> str:
    return "Y\n" if count else "N\n"


def _device(path: Path) -> None:
    """A node to find; it is the null device, or a plain file where nodes may not be made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        return
    try:
        os.mknod(path, stat.S_IFCHR | 0o660, os.makedev(1, 3))
    except PermissionError:
        path.touch(mode=0o660)
