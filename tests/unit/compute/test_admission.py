import pytest

from sev_agent.compute.admission import Admission, GenerationUnavailable, MemoryShort, PolicyUnmet
from sev_agent.hypervisor.free_memory import available_mb
from sev_agent.sev.generation import Generation
from sev_agent.sev.policy import parse_policy


async def test_a_generation_that_the_host_lacks() -> None:
    """A guest of a generation that the host cannot run is refused with the reason; another host may take it."""
    admission = Admission(overhead_mb=128)
    admission.learn({Generation.SEV_SNP: "no firmware"})

    with pytest.raises(GenerationUnavailable, match="amd-sev-snp: no firmware") as caught:
        await admission.check(Generation.SEV_SNP, 64)
    assert caught.value.retryable
    assert "sev-agent check --generation amd-sev-snp" in str(caught.value)
    await admission.check(Generation.SEV, 64)
    admission.learn({})
    await admission.check(Generation.SEV_SNP, 64)


@pytest.mark.parametrize(("free", "fits"), [(641, False), (642, True), (None, True)])
async def test_memory(free: int | None, fits: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """A guest that takes more than the host has free is refused before it starts; an unknown number refuses nothing."""
    admission = Admission(overhead_mb=128, free_mb=lambda: free)

    if fits:
        await admission.check(Generation.SEV, 512)
        return
    with pytest.raises(MemoryShort, match="takes 642 MiB, and this host has 641 MiB free") as caught:
        await admission.check(Generation.SEV, 512)
    assert caught.value.field == "instance.flavor.memory_mb"


def test_available() -> None:
    """The kernel of this machine tells what it could give."""
    assert (available_mb() or 0) > 0


@pytest.mark.parametrize(
    ("text", "generation", "smt", "met"),
    [
        ("abi=1.1", Generation.SEV_SNP, True, False),
        ("abi=1.1", Generation.SEV_SNP, False, True),
        ("abi=1.1", Generation.SEV_SNP, None, True),
        ("smt", Generation.SEV_SNP, True, True),
        ("noks", Generation.SEV_ES, True, True),
    ],
)
def test_smt(text: str, generation: Generation, smt: bool | None, met: bool) -> None:  # noqa: FBT001 - of the test
    """A policy that forbids SMT is refused on a host that has it, before the firmware would."""
    admission = Admission(overhead_mb=128)
    admission.learn({}, smt=smt)

    if met:
        admission.check_policy(parse_policy(text, generation))
        return
    with pytest.raises(PolicyUnmet, match="wants a host without SMT") as caught:
        admission.check_policy(parse_policy(text, generation))
    assert caught.value.retryable


@pytest.mark.parametrize(
    ("text", "generation", "firmware", "met"),
    [
        ("api=1.56", Generation.SEV, (1, 55), False),
        ("es,api=2.0", Generation.SEV_ES, (1, 55), False),
        ("smt,abi=1.56", Generation.SEV_SNP, (1, 55), False),
        ("smt,abi=1.55", Generation.SEV_SNP, (1, 55), True),
        ("api=0.200", Generation.SEV, (1, 0), True),
        ("api=9.9", Generation.SEV, None, True),
    ],
)
def test_least_version(
    text: str,
    generation: Generation,
    firmware: tuple[int, int] | None,
    met: bool,  # noqa: FBT001 - of the test
) -> None:
    """A policy that wants newer firmware than the host's is refused with both versions; major counts before minor."""
    admission = Admission(overhead_mb=128)
    admission.learn({}, firmware=firmware)

    if met:
        admission.check_policy(parse_policy(text, generation))
        return
    wanted = text.rpartition(",")[2]
    with pytest.raises(
        PolicyUnmet, match=rf"\({wanted}\), and that of this host's secure processor is 1\.55"
    ) as caught:
        admission.check_policy(parse_policy(text, generation))
    assert caught.value.field == "instance.flavor.extra_specs.hw:mem_encryption_policy"
    assert caught.value.remedy is not None
    assert f"lower {wanted.partition('=')[0]}= in the policy" in caught.value.remedy


@pytest.mark.parametrize(
    ("text", "one_socket", "met"),
    [
        ("smt,single_socket", False, False),
        ("smt,single_socket", True, True),
        ("smt,single_socket", None, True),
        ("smt", False, True),
    ],
)
def test_single_socket(text: str, one_socket: bool | None, met: bool) -> None:  # noqa: FBT001 - of the test
    """A policy that forbids several sockets is refused on a host that has them; another host may meet it."""
    admission = Admission(overhead_mb=128)
    admission.learn({}, one_socket=one_socket)

    if met:
        admission.check_policy(parse_policy(text, Generation.SEV_SNP))
        return
    with pytest.raises(PolicyUnmet, match="wants a host with one socket") as caught:
        admission.check_policy(parse_policy(text, Generation.SEV_SNP))
    assert caught.value.retryable
