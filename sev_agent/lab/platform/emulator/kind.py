"""The kinds of SEV platform that a host can be, by the newest generation that it runs."""

from enum import StrEnum

POOLS = ("sev", "sev_es")
"""Keys of the kernel's misc cgroup controller, one for each range of ASIDs; SEV-ES and SEV-SNP share the second."""


class Kind(StrEnum):
    """What the processor and its firmware can do.

    A host with SEV-SNP runs no SEV-ES guest: the firmware that mends CVE-2025-48514 excludes one or the other.
    """

    NONE = "none"
    SEV = "sev"
    SEV_ES = "sev-es"
    SEV_SNP = "sev-snp"

    @property
    def parameters(self) -> dict[str, bool]:
        """The parameters of kvm_amd; none where that module is not loaded. SEV-SNP is built on SEV-ES."""
        if self is Kind.NONE:
            return {}
        return {
            "sev": True,
            "sev_es": self in {Kind.SEV_ES, Kind.SEV_SNP},
            "sev_snp": self is Kind.SEV_SNP,
        }

    def capacity(self, slots: int) -> dict[str, int]:
        """How many guests each pool has room for, with ``slots`` in each that the platform has."""
        used = {Kind.NONE: (), Kind.SEV: POOLS[:1]}.get(self, POOLS)
        return {pool: slots if pool in used else 0 for pool in POOLS}
