import pytest
from hypothesis import given
from hypothesis import strategies as st

from sev_agent.sev.generation import Generation
from sev_agent.sev.policy import (
    PolicyBounds,
    PolicyInvalid,
    SevFlag,
    SevPolicy,
    SnpFlag,
    SnpPolicy,
    check_policy,
    default_policy,
    flag_names,
    flags_of,
    parse_policy,
)


@pytest.mark.parametrize(
    ("generation", "value", "text"),
    [
        (Generation.SEV, 0x33, "0x0033"),
        (Generation.SEV_ES, 0x37, "0x0037"),
        (Generation.SEV_SNP, 0x30000, "0x30000"),
    ],
)
def test_defaults(generation: Generation, value: int, text: str) -> None:
    """Each generation's default is Nova's, is of that generation, and passes the check."""
    policy = default_policy(generation)

    assert int(policy) == value
    assert str(policy) == text
    check_policy(policy, generation)


def test_sev_fields() -> None:
    """Flags and the least API version stand where AMD 55766 puts them."""
    policy = SevPolicy.from_int(0x1701_0035)

    assert policy.flags == SevFlag.NODBG | SevFlag.ES | SevFlag.DOMAIN | SevFlag.SEV
    assert (policy.api_major, policy.api_minor) == (1, 0x17)
    assert policy.generation is Generation.SEV_ES


def test_snp_fields() -> None:
    """Flags and the least ABI version stand where AMD 56860 puts them."""
    policy = SnpPolicy.from_int(0x13_0137)

    assert policy.flags == SnpFlag.SMT | SnpFlag.MUST_BE_ONE | SnpFlag.SINGLE_SOCKET
    assert (policy.abi_major, policy.abi_minor) == (1, 0x37)


@given(st.integers(min_value=0, max_value=0x3F), st.integers(0, 255), st.integers(0, 255))
def test_sev_round_trip(flags: int, major: int, minor: int) -> None:
    """Every SEV policy survives its number."""
    policy = SevPolicy(SevFlag(flags), major, minor)
    assert SevPolicy.from_int(int(policy)) == policy


@given(st.integers(min_value=0, max_value=0x3FF), st.integers(0, 255), st.integers(0, 255))
def test_snp_round_trip(flags: int, major: int, minor: int) -> None:
    """Every SEV-SNP policy survives its number."""
    policy = SnpPolicy(SnpFlag(flags << 16 | SnpFlag.MUST_BE_ONE), major, minor)
    assert SnpPolicy.from_int(int(policy)) == policy


@pytest.mark.parametrize("value", [-1, 0x40, 0x8000, 0x8033, 1 << 32])
def test_sev_reserved_bits(value: int) -> None:
    """A SEV policy with a reserved bit is refused."""
    with pytest.raises(PolicyInvalid, match=r"reserved|negative"):
        SevPolicy.from_int(value)


@pytest.mark.parametrize(("value", "what"), [(0x10000, "bit 17"), (0x400_0000 | 0x20000, "reserved"), (0, "bit 17")])
def test_snp_invalid(value: int, what: str) -> None:
    """A SEV-SNP policy with a reserved bit, or without bit 17, is refused."""
    with pytest.raises(PolicyInvalid, match=what):
        SnpPolicy.from_int(value)


def test_fields_have_eight_bits() -> None:
    """A version that would spill into another field is refused."""
    with pytest.raises(PolicyInvalid, match="api_minor"):
        SevPolicy(SevFlag.SEV, api_minor=256)
    with pytest.raises(PolicyInvalid, match="abi_major"):
        SnpPolicy(SnpFlag.MUST_BE_ONE, abi_major=256)


@pytest.mark.parametrize(
    ("policy", "generation", "remedy"),
    [
        (SevPolicy.from_int(0x32), Generation.SEV, "set bit 0"),
        (SnpPolicy.from_int(0xA0000), Generation.SEV_SNP, "clear bit 19"),
    ],
)
def test_debug(policy: SevPolicy | SnpPolicy, generation: Generation, remedy: str) -> None:
    """A policy that lets the host debug the guest is refused, always."""
    with pytest.raises(PolicyInvalid, match=remedy):
        check_policy(policy, generation)


def test_other_generation() -> None:
    """A policy of another generation than asked for is refused."""
    with pytest.raises(PolicyInvalid, match="amd-sev-es"):
        check_policy(SevPolicy.from_int(0x33), Generation.SEV_ES)


@pytest.mark.parametrize(
    ("text", "generation", "value"),
    [
        ("nodbg,noks,domain,sev", Generation.SEV, 0x33),
        ("noks, DOMAIN ,sev", Generation.SEV, 0x33),
        ("noks,domain,sev", Generation.SEV_ES, 0x37),
        ("noks,es,nosend,domain,sev,api=1.55", Generation.SEV_ES, 0x3701_003F),
        ("smt", Generation.SEV_SNP, 0x30000),
        ("single_socket,rapl_dis,abi=1.55", Generation.SEV_SNP, 0x92_0137),
        ("abi=1.0", Generation.SEV_SNP, 0x2_0100),
    ],
)
def test_written(text: str, generation: Generation, value: int) -> None:
    """A policy is written by its flags' names; what a policy always has need not be named."""
    policy = parse_policy(text, generation)

    assert int(policy) == value
    check_policy(policy, generation)


@pytest.mark.parametrize(
    ("text", "generation", "why"),
    [
        ("", Generation.SEV, "is not part of"),
        ("noks,,sev", Generation.SEV, "is not part of"),
        ("es", Generation.SEV, "'es' is not part of a policy of amd-sev"),
        ("nodbg", Generation.SEV_SNP, "smt, migrate_ma"),
        ("debug", Generation.SEV_SNP, "never allowed"),
        ("noks,dbg", Generation.SEV_ES, "never allowed"),
        ("abi=1.1", Generation.SEV, "is not part of"),
        ("api=1", Generation.SEV, "no firmware version"),
        ("api=1.256", Generation.SEV, "no firmware version"),
        ("api=-1.2", Generation.SEV, "no firmware version"),
        ("must_be_one", Generation.SEV_SNP, "is not part of"),
    ],
)
def test_wrongly_written(text: str, generation: Generation, why: str) -> None:
    """A word that is no part of the generation's policy is named, with what could stand there."""
    with pytest.raises(PolicyInvalid, match=why) as caught:
        parse_policy(text, generation)
    assert caught.value.remedy


@given(st.sampled_from(Generation), st.data())
def test_names_of_flags(generation: Generation, data: st.DataObject) -> None:
    """What is written has exactly the flags that it names, and those that every policy has."""
    names = data.draw(st.lists(st.sampled_from(flags_of(generation)), min_size=1))
    always = {Generation.SEV: {"nodbg"}, Generation.SEV_ES: {"nodbg", "es"}, Generation.SEV_SNP: set[str]()}

    assert flag_names(parse_policy(",".join(names), generation)) == set(names) | always[generation]


@given(st.text(max_size=20), st.sampled_from(Generation))
def test_any_text(text: str, generation: Generation) -> None:
    """Whatever is written, it is a policy that passes the check, or it is refused."""
    try:
        policy = parse_policy(text, generation)
    except PolicyInvalid:
        return
    check_policy(policy, generation)


def test_bounds() -> None:
    """An operator may demand flags and forbid others; each counts for the generations that have it."""
    bounds = PolicyBounds(required=frozenset({"nosend", "single_socket"}), forbidden=frozenset({"smt"}))

    with pytest.raises(PolicyInvalid, match="demands nosend"):
        bounds.check(default_policy(Generation.SEV))
    with pytest.raises(PolicyInvalid, match="demands single_socket"):
        bounds.check(default_policy(Generation.SEV_SNP))
    with pytest.raises(PolicyInvalid, match="does not allow smt"):
        bounds.check(parse_policy("smt,single_socket", Generation.SEV_SNP))
    bounds.check(parse_policy("nosend", Generation.SEV_ES))
