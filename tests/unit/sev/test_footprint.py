import pytest

from sev_agent.sev.footprint import guest_footprint_mb, memory_limit_mb, rmp_mb


@pytest.mark.parametrize(
    ("memory_mb", "footprint"), [(64, 192), (512, 642), (65_536, 65_536 + 128 + 256), (1_048_576, 1_052_800)]
)
def test_footprint(memory_mb: int, footprint: int) -> None:
    """A guest takes its RAM, a fixed part, and 1/256 of its RAM for page tables."""
    assert guest_footprint_mb(memory_mb, 128) == footprint


@pytest.mark.parametrize(("memory_mb", "limit"), [(64, 320), (512, 768), (65_536, 65_920)])
def test_limit(memory_mb: int, limit: int) -> None:
    """A limit leaves at least 256 MiB beside the RAM, and never less than what the guest takes."""
    assert memory_limit_mb(memory_mb, 128) == limit


def test_reverse_map_table() -> None:
    """The table has 16 bytes for each page of the host: 4 GiB for a TiB."""
    assert rmp_mb(1_048_576) == 4096
    assert rmp_mb(1) == 1
