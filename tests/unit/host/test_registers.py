"""Registers of the processor, from a device or from a captured text."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sev_agent.host import registers
from sev_agent.host.registers import MemoryEncryption, memory_encryption, model_register
from sev_agent.hypervisor.host_files import HostFiles

numbers = st.integers(min_value=0, max_value=2**32 - 1)


def captured(root: Path, path: str, text: str) -> HostFiles:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)
    return HostFiles(root)


def test_a_leaf_as_cpuid_prints_it(tmp_path: Path) -> None:
    """What ``cpuid -r -1 -l 0x8000001f`` prints, with its heading."""
    text = "CPU:\n   0x8000001f 0x00: eax=0x0101fd3f ebx=0x00004173 ecx=0x000001fd edx=0x00000080\n"
    assert memory_encryption(captured(tmp_path, registers.CPUID, text)) == MemoryEncryption(
        sme=True, sev=True, sev_es=True, sev_snp=True, c_bit=51, last_asid=509, first_sev_asid=128
    )


@pytest.mark.parametrize(
    ("last", "first", "sev", "es"),
    [(509, 1, 509, 0), (509, 100, 410, 99), (15, 0, 15, 0), (509, 510, 0, 509), (0, 0, 0, 0)],
)
def test_slots_of_both_pools(last: int, first: int, sev: int, es: int) -> None:
    """Number 0 is the host's; a lower bound of 1 leaves SEV-ES none, and so does the first generation's 0."""
    leaf = MemoryEncryption(
        sme=True, sev=True, sev_es=True, sev_snp=False, c_bit=47, last_asid=last, first_sev_asid=first
    )
    assert (leaf.sev_slots, leaf.es_slots) == (sev, es)


def test_a_processor_without_the_leaf(tmp_path: Path) -> None:
    """None, not zeros: it is another processor, not one without a feature."""
    assert memory_encryption(captured(tmp_path, registers.CPUID, "")) is None


def test_an_absent_device_is_an_error(tmp_path: Path) -> None:
    """The caller then looks at what the kernel says instead."""
    with pytest.raises(FileNotFoundError):
        memory_encryption(HostFiles(tmp_path))
    with pytest.raises(FileNotFoundError):
        model_register(HostFiles(tmp_path), 0xC001_0010)


def test_model_registers(tmp_path: Path) -> None:
    """A number and a value a line; what is not there is None."""
    files = captured(tmp_path, registers.MSR, "0xc0010010 0x0000000000f40000\n0xC0010015 0x11\n")
    assert model_register(files, 0xC001_0010) == 0xF40000
    assert model_register(files, 0xC001_0015) == 0x11
    assert model_register(files, 0xC001_0132) is None


@given(eax=numbers, ebx=numbers, ecx=numbers, edx=numbers)
def test_any_values_are_read(tmp_path_factory: pytest.TempPathFactory, eax: int, ebx: int, ecx: int, edx: int) -> None:
    """No register makes a count negative, or is misread."""
    line = f"   0x8000001f 0x00: eax={eax:#010x} ebx={ebx:#010x} ecx={ecx:#010x} edx={edx:#010x}\n"
    leaf = memory_encryption(captured(tmp_path_factory.mktemp("root"), registers.CPUID, line))
    assert leaf is not None
    assert (leaf.last_asid, leaf.first_sev_asid) == (ecx, edx)
    assert (leaf.sev, leaf.sev_es, leaf.sev_snp) == (bool(eax & 2), bool(eax & 8), bool(eax & 16))
    assert leaf.sev_slots >= 0
    assert leaf.es_slots >= 0


@given(content=st.binary(max_size=300))
def test_any_text_is_tolerated(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    """What is no table has no registers."""
    root = tmp_path_factory.mktemp("root")
    files = captured(root, registers.MSR, "")
    (root / registers.MSR).write_bytes(content)
    value = model_register(files, 0xC001_0010)
    assert value is None or 0 <= value < 2**64
