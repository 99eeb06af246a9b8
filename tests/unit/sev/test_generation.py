import pytest

from sev_agent.sev.generation import Generation


@pytest.mark.parametrize(
    ("generation", "trait", "provider"),
    [
        (Generation.SEV, "HW_CPU_X86_AMD_SEV", "node1_amd_sev"),
        (Generation.SEV_ES, "HW_CPU_X86_AMD_SEV_ES", "node1_amd_sev_es"),
        (Generation.SEV_SNP, "HW_CPU_X86_AMD_SEV_SNP", "node1_amd_sev_snp"),
    ],
)
def test_names(generation: Generation, trait: str, provider: str) -> None:
    """Trait and provider are named as os-traits and Nova name them."""
    assert generation.trait == trait
    assert generation.provider_name("node1") == provider
