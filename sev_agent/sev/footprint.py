"""What an encrypted guest takes of its host's memory. Pure; all sizes in MiB."""

from typing import Final

_PAGE_TABLE_SHARE: Final = 256
"""Two page tables (QEMU's own and the nested one) have 8 bytes each for every 4 KiB page: 1/256 of the RAM at most."""

_LEAST_SPARE: Final = 256
"""What a limit on locked memory must leave beside the RAM (libvirt, "Launch Security", on memory locking)."""

_RMP_ENTRY: Final = 16
_PAGE: Final = 4096


def guest_footprint_mb(memory_mb: int, overhead_mb: int) -> int:
    """RAM, page tables, and ``overhead_mb``: the firmware, QEMU itself and its devices, whatever the RAM's size."""
    return memory_mb + overhead_mb + memory_mb // _PAGE_TABLE_SHARE


def memory_limit_mb(memory_mb: int, overhead_mb: int) -> int:
    """The least limit of memory that lets the guest start, and keeps QEMU from taking much more than it should."""
    return max(guest_footprint_mb(memory_mb, overhead_mb), memory_mb + _LEAST_SPARE)


def rmp_mb(host_memory_mb: int) -> int:
    """The reverse map table of a host with SEV-SNP: 16 bytes for each 4 KiB page of its RAM (AMD 24593, 15.36.3).

    The BIOS reserves it before the kernel counts its memory, so what the kernel calls its total lacks it already.
    """
    return -(-host_memory_mb * _RMP_ENTRY // _PAGE)
