"""Registers of the processor: CPUID leaves and model-specific registers.

The kernel's modules ``cpuid`` and ``msr`` show them in character devices. In a captured host a text file stands in
the device's place, one register a line: what ``cpuid -r`` prints of a leaf, a number and a value of an MSR.
"""

import os
import re
import struct
from dataclasses import dataclass

from sev_agent.hypervisor.host_files import HostFiles

CPUID = "dev/cpu/0/cpuid"
MSR = "dev/cpu/0/msr"

MEMORY_ENCRYPTION_LEAF = 0x8000_001F

SYSCFG = 0xC001_0010
HWCR = 0xC001_0015
RMP_BASE = 0xC001_0132
RMP_END = 0xC001_0133
MODEL_REGISTERS = (SYSCFG, HWCR, RMP_BASE, RMP_END)
"""All that the checks look at."""

_HIGHEST_LEAF = 0x8000_0000

_LEAF_LINE = re.compile(
    r"^\s*(0x[0-9a-f]{1,8})\s+0x00:\s+"
    r"eax=(0x[0-9a-f]{1,8})\s+ebx=(0x[0-9a-f]{1,8})\s+ecx=(0x[0-9a-f]{1,8})\s+edx=(0x[0-9a-f]{1,8})\s*$",
    re.IGNORECASE | re.MULTILINE,
)
_REGISTER_LINE = re.compile(r"^\s*(0x[0-9a-f]{1,8})\s+(0x[0-9a-f]{1,16})\s*$", re.IGNORECASE | re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryEncryption:
    """CPUID leaf 0x8000001F. Source: AMD64 Architecture Programmer's Manual, volume 3, appendix E.4.17.

    ``last_asid`` is how many encrypted guests there can be, ``first_sev_asid`` the lowest number that a guest of plain
    SEV may have; those below it are for SEV-ES and SEV-SNP.
    """

    sme: bool
    sev: bool
    sev_es: bool
    sev_snp: bool
    c_bit: int
    last_asid: int
    first_sev_asid: int

    @property
    def sev_slots(self) -> int:
        """How many guests of plain SEV."""
        # Number 0 is the host's. The first generation says 0 for "no lower bound".
        return max(0, self.last_asid - max(1, self.first_sev_asid) + 1)

    @property
    def es_slots(self) -> int:
        """How many guests of SEV-ES and SEV-SNP together."""
        return max(0, self.first_sev_asid - 1)


def memory_encryption(files: HostFiles) -> MemoryEncryption | None:
    """What the processor says; None where it has no such leaf. Raises ``OSError``."""
    leaf = leaf_values(files, MEMORY_ENCRYPTION_LEAF)
    if leaf is None:
        return None
    eax, ebx, ecx, edx = leaf
    return MemoryEncryption(
        sme=bool(eax & 1),
        sev=bool(eax >> 1 & 1),
        sev_es=bool(eax >> 3 & 1),
        sev_snp=bool(eax >> 4 & 1),
        c_bit=ebx & 0x3F,
        last_asid=ecx,
        first_sev_asid=edx,
    )


def model_register(files: HostFiles, number: int) -> int | None:
    """One model-specific register of the first processor; None where it is not there. Raises ``OSError``."""
    if not _is_device(files, MSR):
        rows = {int(row[1], 16): int(row[2], 16) for row in _REGISTER_LINE.finditer(files.text(MSR))}
        return rows.get(number)
    try:
        return int.from_bytes(_read(files, MSR, number, 8), "little")
    except PermissionError:
        raise
    except OSError:
        return None  # EIO: this processor has no such register


def leaf_values(files: HostFiles, number: int) -> tuple[int, int, int, int] | None:
    """EAX, EBX, ECX, EDX of a leaf; None where the processor has none of that number. Raises ``OSError``."""
    if not _is_device(files, CPUID):
        rows = _LEAF_LINE.finditer(files.text(CPUID))
        leaves = {int(row[1], 16): tuple(int(value, 16) for value in row.groups()[1:]) for row in rows}
        eax, ebx, ecx, edx = leaves.get(number, (0, 0, 0, 0))
        return (eax, ebx, ecx, edx) if number in leaves else None
    # Beyond the highest leaf, processors answer with any other leaf's values.
    highest, *_ = struct.unpack("<4I", _read(files, CPUID, _HIGHEST_LEAF, 16))
    if number > highest:
        return None
    eax, ebx, ecx, edx = struct.unpack("<4I", _read(files, CPUID, number, 16))
    return eax, ebx, ecx, edx


def _is_device(files: HostFiles, path: str) -> bool:
    node = files.node(path)
    if node is None:
        raise FileNotFoundError(f"{files.where(path)} is not there")
    return node.is_device


def _read(files: HostFiles, path: str, offset: int, size: int) -> bytes:
    descriptor = os.open(files.resolve(path), os.O_RDONLY)
    try:
        content = os.pread(descriptor, size, offset)
    finally:
        os.close(descriptor)
    if len(content) != size:
        raise OSError(f"{files.where(path)} gave {len(content)} bytes, not {size}")
    return content
