"""The choice of firmware from QEMU's descriptors, with a reason for every candidate.

Format and order of the descriptors: QEMU's ``docs/interop/firmware.json``.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sev_agent.domain.spec import DiskFormat
from sev_agent.errors import SevAgentError
from sev_agent.sev.generation import Generation

ARCHITECTURE = "x86_64"

_SECURE_BOOT = ("secure-boot", "enrolled-keys")


class NoFirmware(SevAgentError):
    """No firmware of this host can start the guest; another host's may."""

    code = "firmware.none"
    retryable = True


@dataclass(frozen=True, slots=True)
class DescriptorFile:
    """A firmware descriptor as it lies on disk; ``text`` is empty where it masks others of its name."""

    path: Path
    text: str


@dataclass(frozen=True, slots=True)
class Candidate:
    """A descriptor, judged. ``reason`` says why it was taken or not."""

    path: Path
    description: str
    accepted: bool
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FirmwareChoice:
    """The firmware to use, and everything that was considered."""

    descriptor: Path
    code: Path
    code_format: DiskFormat
    nvram_template: Path
    nvram_format: DiskFormat
    candidates: tuple[Candidate, ...]


class _Part(BaseModel):
    # Fields that a later QEMU adds must not hide the firmware.
    model_config = ConfigDict(frozen=True, extra="ignore")


class _FlashFile(_Part):
    filename: Path
    format: DiskFormat


class _Flash(_Part):
    device: Literal["flash"]
    mode: str = "split"
    executable: _FlashFile
    nvram_template: _FlashFile | None = Field(default=None, alias="nvram-template")


class _Other(_Part):
    device: Literal["kernel", "memory"]


class _Target(_Part):
    architecture: str
    machines: tuple[str, ...]


class _Descriptor(_Part):
    description: str = ""
    interface_types: tuple[str, ...] = Field(alias="interface-types")
    mapping: _Flash | _Other = Field(discriminator="device")
    targets: tuple[_Target, ...]
    features: frozenset[str]


def choose_firmware(
    files: Sequence[DescriptorFile], generation: Generation, *, machine: str = "q35", secure_boot: bool = False
) -> FirmwareChoice:
    """The first firmware in QEMU's order that can start a guest of ``generation`` on ``machine``.

    ``files`` as ``effective`` takes them. Raises ``NoFirmware`` with the reason for every candidate.
    """
    chosen: tuple[Path, _Flash, _FlashFile] | None = None
    candidates = []
    for file in effective(files):
        descriptor, fault = _parse(file)
        if descriptor is None:
            candidates.append(Candidate(file.path, "", accepted=False, reason=fault))
            continue
        fault = _fault(descriptor, generation, machine=machine, secure_boot=secure_boot)
        match descriptor.mapping:
            case _Flash(nvram_template=_FlashFile() as template) as flash if not fault:
                reason = "taken: the first that fits" if chosen is None else "fits, but comes later"
                chosen = chosen or (file.path, flash, template)
                candidates.append(Candidate(file.path, descriptor.description, accepted=True, reason=reason))
            case _:
                candidates.append(Candidate(file.path, descriptor.description, accepted=False, reason=fault))
    if chosen is None:
        raise _none(candidates, generation, machine)
    path, flash, template = chosen
    return FirmwareChoice(
        descriptor=path,
        code=flash.executable.filename,
        code_format=flash.executable.format,
        nvram_template=template.filename,
        nvram_format=template.format,
        candidates=tuple(candidates),
    )


def effective(files: Iterable[DescriptorFile]) -> tuple[DescriptorFile, ...]:
    """The descriptors in force, in order of their names.

    ``files`` come from the most specific directory first: the first of a name stands, and an empty one hides the rest.
    """
    by_name: dict[str, DescriptorFile] = {}
    for file in files:
        by_name.setdefault(file.path.name, file)
    return tuple(file for _, file in sorted(by_name.items()) if file.text.strip())


def _parse(file: DescriptorFile) -> tuple[_Descriptor | None, str]:
    try:
        return _Descriptor.model_validate(json.loads(file.text)), ""
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        return None, f"is no firmware descriptor: {where}: {first['msg']}"
    except (ValueError, RecursionError) as error:
        return None, f"is not JSON: {error}"


def _fault(descriptor: _Descriptor, generation: Generation, *, machine: str, secure_boot: bool) -> str:
    """Why ``descriptor`` does not fit, or an empty text."""
    if "uefi" not in descriptor.interface_types:
        return f"its interface is {', '.join(descriptor.interface_types) or 'none'}, not uefi"
    if not any(_runs_on(target, machine) for target in descriptor.targets):
        return f"it is not for {ARCHITECTURE} machine type {machine}"
    return (
        _mapping_fault(descriptor, generation)
        or _feature_fault(descriptor.features, generation)
        or _secure_boot_fault(descriptor.features, secure_boot=secure_boot)
    )


def _mapping_fault(descriptor: _Descriptor, generation: Generation) -> str:
    if generation is Generation.SEV_SNP:
        return "firmware for amd-sev-snp is not chosen yet: it is mapped as memory, not as flash"
    match descriptor.mapping:
        case _Flash(mode="split", nvram_template=_FlashFile()):
            return ""
        case _Flash(mode=mode):
            return f"its flash is in mode {mode}, without an NVRAM template to copy"
        case _Other(device=device):
            return f"it is mapped as {device}, not as flash"


def _feature_fault(features: frozenset[str], generation: Generation) -> str:
    # The feature is named as the generation.
    return "" if generation.value in features else f"it lacks feature {generation.value}"


def _secure_boot_fault(features: frozenset[str], *, secure_boot: bool) -> str:
    if "requires-smm" in features:
        return "it needs system management mode, which encrypted guests do not have"
    if secure_boot:
        missing = [feature for feature in _SECURE_BOOT if feature not in features]
        return f"it lacks feature {', '.join(missing)}" if missing else ""
    present = [feature for feature in _SECURE_BOOT if feature in features]
    return f"it has {', '.join(present)}, which the guest does not ask for" if present else ""


def _runs_on(target: _Target, machine: str) -> bool:
    if target.architecture != ARCHITECTURE:
        return False
    # Patterns are for concrete versions; the alias stands for some version that QEMU knows.
    concrete = "pc-q35-0" if machine == "q35" else machine
    return any(fnmatchcase(concrete, pattern) for pattern in target.machines)


def _none(candidates: Sequence[Candidate], generation: Generation, machine: str) -> NoFirmware:
    reasons = "; ".join(f"{candidate.path}: {candidate.reason}" for candidate in candidates)
    return NoFirmware(
        f"no firmware here can start a guest of {generation} on {machine}: {reasons or 'there is no descriptor'}",
        remedy=f"install OVMF with feature {generation.value} and without Secure Boot (Debian: ovmf)",
    )
