"""The files below ``/sys``, ``/proc``, ``/boot`` and ``/dev`` that a host shows, with SEV or without."""

import os
from dataclasses import dataclass
from pathlib import Path

from sev_agent.lab.platform.emulator.firmware import BUILD_ID
from sev_agent.lab.platform.emulator.kind import Kind
from sev_agent.lab.platform.emulator.launch import API_MAJOR, API_MINOR

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
    leaf: str = ""


# The leaf is CPUID 0x8000001F, as ``cpuid -r`` prints it.
_PROCESSORS = {
    Kind.NONE: _Processor("GenuineIntel", 6, 85, "Intel(R) Xeon(R) Gold 6230 CPU", "vmx ept vpid"),
    Kind.SEV: _Processor(
        *("AuthenticAMD", 23, 1, "AMD EPYC 7551 32-Core Processor", "svm npt sme sev"),
        "eax=0x0000000f ebx=0x0000016f ecx=0x0000000f edx=0x00000000",
    ),
    Kind.SEV_ES: _Processor(
        *("AuthenticAMD", 23, 49, "AMD EPYC 7502 32-Core Processor", "svm npt sme sev sev_es"),
        "eax=0x0001000f ebx=0x0000016f ecx=0x000001fd edx=0x00000064",
    ),
    Kind.SEV_SNP: _Processor(
        *("AuthenticAMD", 25, 1, "AMD EPYC 7543 32-Core Processor", "svm npt sme sev sev_es sev_snp"),
        "eax=0x0101fd3f ebx=0x00004173 ecx=0x000001fd edx=0x00000064",
    ),
}

_MEMORY_ENCRYPTION = "0xc0010010 0x0000000000f40000\n0xc0010015 0x0000000009000011\n"
_SNP = (
    "0xc0010010 0x0000000001f40000\n0xc0010015 0x0000000009000011\n"
    "0xc0010132 0x0000007f3ee00000\n0xc0010133 0x000000807fbfffff\n"
)
_STATUS = f"api_major = {API_MAJOR}\napi_minor = {API_MINOR}\nbuild = {BUILD_ID}\nstate = 1\nguests = 0\n"


def write_platform_root(root: Path, kind: Kind) -> None:
    """Make ``root`` show a host of ``kind``. Blocks."""
    for name, content in (_common(kind) | _parameters(kind) | _devices(kind)).items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        # Where a node was, writing would go into the device.
        path.unlink(missing_ok=True)
        path.write_text(content)
    (root / MISC_DIRECTORY).mkdir(parents=True, exist_ok=True)
    if kind is not Kind.NONE:
        (root / "dev/kvm").chmod(0o660)


def _common(kind: Kind) -> dict[str, str]:
    options = "" if kind is Kind.NONE else " mem_encrypt=on kvm_amd.sev=1"
    return {
        "SIMULATED": "A simulated SEV platform of a sev-agent lab: no memory is encrypted.\n",
        "proc/cmdline": f"BOOT_IMAGE=/boot/vmlinuz-{_KERNEL} root=/dev/sda1 ro{options}\n",
        "proc/cpuinfo": _cpuinfo(_PROCESSORS[kind]),
        "proc/sys/kernel/osrelease": f"{_KERNEL}\n",
        f"boot/config-{_KERNEL}": (
            "CONFIG_AMD_IOMMU=y\n"
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


def _devices(kind: Kind) -> dict[str, str]:
    """What devices answer, in the form in which ``sev-agent check`` reads it of a captured host."""
    if kind is Kind.NONE:
        return {}
    snp = _STATUS if kind is Kind.SEV_SNP else 'error = "Invalid argument"\n'
    return {
        "dev/cpu/0/cpuid": f"   0x8000001f 0x00: {_PROCESSORS[kind].leaf}\n",
        "dev/cpu/0/msr": _SNP if kind is Kind.SEV_SNP else _MEMORY_ENCRYPTION,
        "dev/kvm": "",
        "dev/sev": f"[sev]\n{_STATUS}\n[snp]\n{snp}",
        "sys/kernel/iommu_groups/0/type": "DMA-FQ\n",
    }


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
