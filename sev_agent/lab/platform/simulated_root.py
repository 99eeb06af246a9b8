"""The files below ``/sys``, ``/proc``, ``/boot`` and ``/dev`` that a host shows, with SEV or without."""

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from sev_agent.lab.platform.emulator.kind import Kind

MISC_DIRECTORY = Path("sys/fs/cgroup")
"""Where, below the root, ``misc.capacity`` and ``misc.current`` lie."""

_KERNEL = "6.12.0-sev-lab-amd64"
_BASE_FLAGS = "fpu vme de pse tsc msr pae mce cx8 apic sep"


@dataclass(frozen=True, slots=True)
class _Processor:
    vendor: str
    family: int
    model: int
    name: str
    flags: str


_PROCESSORS = {
    Kind.NONE: _Processor("GenuineIntel", 6, 85, "Intel(R) Xeon(R) Gold 6230 CPU", "vmx ept vpid"),
    Kind.SEV: _Processor("AuthenticAMD", 23, 1, "AMD EPYC 7551 32-Core Processor", "svm npt sme sev"),
    Kind.SEV_ES: _Processor("AuthenticAMD", 23, 49, "AMD EPYC 7502 32-Core Processor", "svm npt sme sev sev_es"),
    Kind.SEV_SNP: _Processor(
        "AuthenticAMD", 25, 1, "AMD EPYC 7543 32-Core Processor", "svm npt sme sev sev_es sev_snp"
    ),
}


def write_platform_root(root: Path, kind: Kind) -> None:
    """Make ``root`` show a host of ``kind``. Blocks."""
    for name, content in (_common(kind) | _parameters(kind)).items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    (root / MISC_DIRECTORY).mkdir(parents=True, exist_ok=True)
    if kind is not Kind.NONE:
        _device(root / "dev/sev")


def _common(kind: Kind) -> dict[str, str]:
    options = "" if kind is Kind.NONE else " mem_encrypt=on kvm_amd.sev=1"
    return {
        "SIMULATED": "A simulated SEV platform of a sev-agent lab: no memory is encrypted.\n",
        "proc/cmdline": f"BOOT_IMAGE=/boot/vmlinuz-{_KERNEL} root=/dev/sda1 ro{options}\n",
        "proc/cpuinfo": _cpuinfo(_PROCESSORS[kind]),
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


def _parameters(kind: Kind) -> dict[str, str]:
    return {f"sys/module/kvm_amd/parameters/{name}": "Y\n" if on else "N\n" for name, on in kind.parameters.items()}


def _cpuinfo(processor: _Processor) -> str:
    lines = (
        f"vendor_id\t: {processor.vendor}",
        f"cpu family\t: {processor.family}",
        f"model\t\t: {processor.model}",
        f"model name\t: {processor.name} (simulated)",
        "stepping\t: 1",
        f"flags\t\t: {_BASE_FLAGS} {processor.flags}",
        "address sizes\t: 48 bits physical, 48 bits virtual",
    )
    text = "\n".join(lines)
    return "".join(f"processor\t: {number}\n{text}\n\n" for number in range(os.cpu_count() or 1))


def _device(path: Path) -> None:
    """A node to find; it is the null device, or a plain file where nodes may not be made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        return
    try:
        os.mknod(path, stat.S_IFCHR | 0o660, os.makedev(1, 3))
    except PermissionError:
        path.touch(mode=0o660)
