"""The generations of AMD memory encryption, in the spellings of Nova, Placement and libvirt."""

from enum import StrEnum


class Generation(StrEnum):
    """A generation of memory encryption, by the name that Nova's ``hw:mem_encryption_model`` gives it."""

    SEV = "amd-sev"
    SEV_ES = "amd-sev-es"
    SEV_SNP = "amd-sev-snp"

    @property
    def trait(self) -> str:
        """The trait that os-traits defines for it, such as ``HW_CPU_X86_AMD_SEV_ES``."""
        return f"HW_CPU_X86_{self.value.replace('-', '_').upper()}"

    def provider_name(self, host: str) -> str:
        """The child resource provider that Nova (since 2025.2) gives it on ``host``, such as ``node1_amd_sev``."""
        return f"{host}_{self.value.replace('-', '_')}"


RESOURCE_CLASS = "MEM_ENCRYPTION_CONTEXT"
NODE_TYPE_TRAIT = "CUSTOM_NODE_TYPE_SEV"
DISABLED_TRAIT = "COMPUTE_STATUS_DISABLED"
"""What Nova gives the provider of a host that an operator disabled, and an operator may: nothing new goes there."""
