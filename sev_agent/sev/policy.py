"""Guest policies: what an encrypted guest allows its host, bit by bit.

Sources: AMD 55766 (SEV API), "Guest Policy", for SEV and SEV-ES; AMD 56860 (SEV-SNP Firmware ABI), "Guest Policy".
"""

import re
from dataclasses import dataclass
from enum import IntFlag
from typing import Final, Self

from sev_agent.errors import InvalidRequest
from sev_agent.sev.generation import Generation


class PolicyInvalid(InvalidRequest):
    """A guest policy that the firmware would refuse, or that this host does not allow."""

    code = "sev.policy"


class SevFlag(IntFlag):
    """The flags of a SEV or SEV-ES guest policy (bits 0 to 5)."""

    NODBG = 1 << 0
    NOKS = 1 << 1
    ES = 1 << 2
    NOSEND = 1 << 3
    DOMAIN = 1 << 4
    SEV = 1 << 5


class SnpFlag(IntFlag):
    """The flags of a SEV-SNP guest policy (bits 16 to 25). The sense of ``DEBUG`` is the inverse of SEV's ``NODBG``."""

    SMT = 1 << 16
    MUST_BE_ONE = 1 << 17
    MIGRATE_MA = 1 << 18
    DEBUG = 1 << 19
    SINGLE_SOCKET = 1 << 20
    CXL_ALLOW = 1 << 21
    MEM_AES_256_XTS = 1 << 22
    RAPL_DIS = 1 << 23
    CIPHERTEXT_HIDING_DRAM = 1 << 24
    PAGE_SWAP_DISABLE = 1 << 25


_SEV_FLAGS = 0x3F
_SEV_KNOWN = 0xFFFF_0000 | _SEV_FLAGS
_SNP_FLAGS = 0x03FF_0000
_SNP_KNOWN = 0x0000_FFFF | _SNP_FLAGS


@dataclass(frozen=True, slots=True)
class SevPolicy:
    """A policy of SEV or SEV-ES. ``api_major`` and ``api_minor`` are the least firmware version the guest accepts."""

    flags: SevFlag
    api_major: int = 0
    api_minor: int = 0

    def __post_init__(self) -> None:
        _check_range(int(self.flags), _SEV_KNOWN & 0xFFFF, "flags")
        _check_range(self.api_major, 0xFF, "api_major")
        _check_range(self.api_minor, 0xFF, "api_minor")

    @classmethod
    def from_int(cls, value: int) -> Self:
        """Raises ``PolicyInvalid`` where a reserved bit (6 to 15) is set, or ``value`` has more than 32 bits."""
        _check_range(value, _SEV_KNOWN, "policy")
        return cls(SevFlag(value & _SEV_FLAGS), value >> 16 & 0xFF, value >> 24)

    def __int__(self) -> int:
        return int(self.flags) | self.api_major << 16 | self.api_minor << 24

    def __str__(self) -> str:
        return f"0x{int(self):04x}"

    @property
    def generation(self) -> Generation:
        return Generation.SEV_ES if SevFlag.ES in self.flags else Generation.SEV

    @property
    def debuggable(self) -> bool:
        """Whether the host may read and write the guest's memory in clear text."""
        return SevFlag.NODBG not in self.flags


@dataclass(frozen=True, slots=True)
class SnpPolicy:
    """A policy of SEV-SNP. ``abi_major`` and ``abi_minor`` are the least firmware ABI the guest accepts."""

    flags: SnpFlag
    abi_major: int = 0
    abi_minor: int = 0

    def __post_init__(self) -> None:
        _check_range(int(self.flags), _SNP_FLAGS, "flags")
        _check_range(self.abi_major, 0xFF, "abi_major")
        _check_range(self.abi_minor, 0xFF, "abi_minor")
        # libvirt does not look at this bit; without it the firmware refuses the launch.
        if SnpFlag.MUST_BE_ONE not in self.flags:
            raise PolicyInvalid(f"SEV-SNP policy {self} has bit 17 clear", remedy="set bit 17 (0x20000)")

    @classmethod
    def from_int(cls, value: int) -> Self:
        """Raises ``PolicyInvalid`` where a reserved bit (26 to 63) is set, or bit 17 is clear."""
        _check_range(value, _SNP_KNOWN, "policy")
        return cls(SnpFlag(value & _SNP_FLAGS), value >> 8 & 0xFF, value & 0xFF)

    def __int__(self) -> int:
        return int(self.flags) | self.abi_major << 8 | self.abi_minor

    def __str__(self) -> str:
        return f"0x{int(self):05x}"

    @property
    def generation(self) -> Generation:
        return Generation.SEV_SNP

    @property
    def debuggable(self) -> bool:
        """Whether the host may read and write the guest's memory in clear text."""
        return SnpFlag.DEBUG in self.flags


Policy = SevPolicy | SnpPolicy


def default_policy(generation: Generation) -> Policy:
    """The policy that Nova gives a guest: no debugging, no key sharing, no sending to platforms of another domain."""
    match generation:
        case Generation.SEV:
            return SevPolicy.from_int(0x33)
        case Generation.SEV_ES:
            return SevPolicy.from_int(0x37)
        case Generation.SEV_SNP:
            return SnpPolicy.from_int(0x30000)


def check_policy(policy: Policy, generation: Generation) -> None:
    """Raises ``PolicyInvalid`` where ``policy`` is of another generation, or lets the host debug the guest."""
    if policy.generation is not generation:
        raise PolicyInvalid(
            f"policy {policy} is one of {policy.generation}, but the guest asks for {generation}",
            remedy=f"use a policy such as {default_policy(generation)}",
        )
    if policy.debuggable:
        raise PolicyInvalid(
            f"policy {policy} lets the host read the guest's memory",
            remedy="clear bit 19 (DEBUG)" if isinstance(policy, SnpPolicy) else "set bit 0 (NODBG)",
        )


_ALWAYS: Final = {
    Generation.SEV: frozenset({"nodbg"}),
    Generation.SEV_ES: frozenset({"nodbg", "es"}),
    Generation.SEV_SNP: frozenset[str](),
}
"""Flags that a policy of a generation has, named or not."""

_VERSION: Final = re.compile(r"(\d{1,3})\.(\d{1,3})")


def flags_of(generation: Generation) -> tuple[str, ...]:
    """The names by which a policy of ``generation`` is written. Debugging has none: it is never allowed."""
    match generation:
        case Generation.SEV:
            return tuple(flag.name.lower() for flag in SevFlag if flag.name and flag is not SevFlag.ES)
        case Generation.SEV_ES:
            return tuple(flag.name.lower() for flag in SevFlag if flag.name)
        case Generation.SEV_SNP:
            hidden = {SnpFlag.MUST_BE_ONE, SnpFlag.DEBUG}
            return tuple(flag.name.lower() for flag in SnpFlag if flag.name and flag not in hidden)


FLAGS: Final = frozenset(name for generation in Generation for name in flags_of(generation))
"""The names of the flags of all generations."""


def version_key(generation: Generation) -> str:
    """What the least firmware version is called in a written policy: of the API, with SEV-SNP of the ABI."""
    return "abi" if generation is Generation.SEV_SNP else "api"


def parse_policy(text: str, generation: Generation) -> Policy:
    """A policy written as flags and a least firmware version: ``nodbg,noks,domain,sev,api=1.55``, ``smt,abi=1.55``.

    It is the whole policy, not a change to the default one; ``nodbg``, the ``es`` of SEV-ES and the bit of SEV-SNP
    that must be one are there whether named or not. Raises ``PolicyInvalid`` at the first word that is not known.
    """
    names: set[str] = set(_ALWAYS[generation])
    version = (0, 0)
    for word in (part.strip().lower() for part in text.split(",")):
        key, equals, value = word.partition("=")
        if equals and key == version_key(generation):
            version = _version(word, value)
        elif word in flags_of(generation):
            names.add(word)
        else:
            raise _unknown(word, generation)
    if generation is Generation.SEV_SNP:
        snp = SnpFlag.MUST_BE_ONE
        for name in names:
            snp |= SnpFlag[name.upper()]
        return SnpPolicy(snp, *version)
    sev = SevFlag(0)
    for name in names:
        sev |= SevFlag[name.upper()]
    return SevPolicy(sev, *version)


def flag_names(policy: Policy) -> frozenset[str]:
    """The flags that ``policy`` has, by the names in which it is written."""
    known = flags_of(policy.generation)
    kind = SnpFlag if isinstance(policy, SnpPolicy) else SevFlag
    return frozenset(name for name in known if int(policy.flags) & int(kind[name.upper()]))


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyBounds:
    """What an operator demands of every policy, by the names of flags; each counts where the generation has it."""

    required: frozenset[str] = frozenset()
    forbidden: frozenset[str] = frozenset({"migrate_ma"})

    def check(self, policy: Policy) -> None:
        """Raises ``PolicyInvalid`` where ``policy`` lacks what is required, or has what is forbidden."""
        has = flag_names(policy)
        if lacking := sorted(self.required & set(flags_of(policy.generation)) - has):
            raise PolicyInvalid(
                f"this cloud demands {', '.join(lacking)} of every policy", remedy=f"add {','.join(lacking)} to it"
            )
        if surplus := sorted(self.forbidden & has):
            raise PolicyInvalid(
                f"this cloud does not allow {', '.join(surplus)} in a policy", remedy=f"remove {','.join(surplus)}"
            )


NO_BOUNDS: Final = PolicyBounds(forbidden=frozenset())


def _version(word: str, value: str) -> tuple[int, int]:
    found = _VERSION.fullmatch(value)
    if not found or max(int(found[1]), int(found[2])) > 0xFF:
        raise PolicyInvalid(
            f"{word!r} is no firmware version", remedy="write it as api=MAJOR.MINOR (abi= for amd-sev-snp)"
        )
    return int(found[1]), int(found[2])


def _unknown(word: str, generation: Generation) -> PolicyInvalid:
    choice = f"{', '.join(flags_of(generation))} and {version_key(generation)}=MAJOR.MINOR"
    if word in {"debug", "dbg"}:
        return PolicyInvalid(
            f"{word!r} would let the host read the guest's memory, which is never allowed", remedy=f"remove {word!r}"
        )
    return PolicyInvalid(
        f"{word!r} is not part of a policy of {generation}, which has {choice}", remedy="use these names, with commas"
    )


def _check_range(value: int, known: int, what: str) -> None:
    if value < 0 or value & ~known:
        raise PolicyInvalid(
            f"{what} {value:#x} has bits that are reserved: {value & ~known:#x}"
            if value >= 0
            else f"{what} is negative",
            remedy=f"use only the bits of {known:#x}",
        )
