"""The choice of firmware from QEMU's descriptors, with a reason for every candidate.

Format and order of the descriptors: QEMU's ``docs/interop/firmware.json``.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final, Literal

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
class FlashBuild:
    """Firmware in flash: with a template of its variables, or without any (``nvram_template`` is ``None``)."""

    code: Path
    code_format: DiskFormat
    nvram_template: Path | None = None
    nvram_format: DiskFormat = DiskFormat.RAW


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryBuild:
    """Firmware in one file that is mapped as memory, and keeps no variables."""

    code: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class FirmwareWanted:
    """What a guest needs of its firmware; SEV-SNP's is always stateless."""

    generation: Generation
    machine: str = "q35"
    secure_boot: bool = False
    asks_stateless: bool = False

    @property
    def stateless(self) -> bool:
        return self.asks_stateless or self.generation is Generation.SEV_SNP


@dataclass(frozen=True, slots=True, kw_only=True)
class FirmwareChoice:
    """The firmware to use, and everything that was considered."""

    descriptor: Path
    build: FlashBuild | MemoryBuild
    candidates: tuple[Candidate, ...]

    @property
    def code(self) -> Path:
        return self.build.code


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


class _Memory(_Part):
    device: Literal["memory"]
    filename: Path


class _Kernel(_Part):
    device: Literal["kernel"]


class _Target(_Part):
    architecture: str
    machines: tuple[str, ...]


class _Descriptor(_Part):
    description: str = ""
    interface_types: tuple[str, ...] = Field(alias="interface-types")
    mapping: _Flash | _Memory | _Kernel = Field(discriminator="device")
    targets: tuple[_Target, ...]
    features: frozenset[str]


def choose_firmware(files: Sequence[DescriptorFile], wanted: FirmwareWanted) -> FirmwareChoice:
    """The first firmware in QEMU's order that can start a guest that needs what is ``wanted``.

    ``files`` as ``effective`` takes them. Raises ``NoFirmware`` with the reason for every candidate.
    """
    candidates, chosen = judge_firmware(files, wanted)
    if chosen is None:
        raise _none(candidates, wanted)
    path, build = chosen
    return FirmwareChoice(descriptor=path, build=build, candidates=candidates)


def judge_firmware(
    files: Sequence[DescriptorFile], wanted: FirmwareWanted
) -> tuple[tuple[Candidate, ...], tuple[Path, FlashBuild | MemoryBuild] | None]:
    """Every candidate with the reason for its acceptance or rejection, in QEMU's order; and the one to use, if any."""
    chosen: tuple[Path, FlashBuild | MemoryBuild] | None = None
    candidates = []
    in_force = {file.path.name: file for file in effective(files)}
    for file in sorted(files, key=lambda file: file.path.name):
        if in_force.get(file.path.name) is not file:
            candidates.append(Candidate(file.path, "", accepted=False, reason=_hidden(file, files)))
            continue
        descriptor, fault = _parse(file)
        description = descriptor.description if descriptor else ""
        verdict = _build(descriptor, wanted) if descriptor else fault
        if isinstance(verdict, str):
            candidates.append(Candidate(file.path, description, accepted=False, reason=verdict))
            continue
        reason = "taken: the first that fits" if chosen is None else "fits, but comes later"
        candidates.append(Candidate(file.path, description, accepted=True, reason=reason))
        chosen = chosen or (file.path, verdict)
    return tuple(candidates), chosen


def _hidden(file: DescriptorFile, files: Sequence[DescriptorFile]) -> str:
    """Why ``file`` is not in force."""
    first = next(other for other in files if other.path.name == file.path.name)
    return "is empty, and hides others of its name" if first is file else f"is hidden by {first.path}"


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


def _build(descriptor: _Descriptor, wanted: FirmwareWanted) -> FlashBuild | MemoryBuild | str:
    """What to map where, or why ``descriptor`` does not fit."""
    if "uefi" not in descriptor.interface_types:
        return f"its interface is {', '.join(descriptor.interface_types) or 'none'}, not uefi"
    if not any(_runs_on(target, wanted.machine) for target in descriptor.targets):
        return f"it is not for {ARCHITECTURE} machine type {wanted.machine}"
    return (
        _feature_fault(descriptor.features, wanted.generation)
        or _secure_boot_fault(descriptor.features, secure_boot=wanted.secure_boot)
        or _mapped(descriptor.mapping, wanted)
    )


def _mapped(mapping: _Flash | _Memory | _Kernel, wanted: FirmwareWanted) -> FlashBuild | MemoryBuild | str:
    match mapping:
        case _Memory(filename=code):
            keeps_none = "it is mapped as memory and keeps no variables, for images with hw_firmware_stateless=true"
            return MemoryBuild(code=code) if wanted.stateless else keeps_none
        case _Flash() if wanted.generation is Generation.SEV_SNP:
            return f"it is mapped as flash; {wanted.generation} needs it mapped as memory"
        case _Flash() as flash:
            return _flashed(flash, stateless=wanted.stateless)
        case _Kernel(device=device):
            return f"it is mapped as {device}, not as flash or memory"


def _flashed(flash: _Flash, *, stateless: bool) -> FlashBuild | str:
    code = flash.executable
    match flash:
        case _Flash(mode="split", nvram_template=_FlashFile() as template) if not stateless:
            return FlashBuild(
                code=code.filename,
                code_format=code.format,
                nvram_template=template.filename,
                nvram_format=template.format,
            )
        case _Flash(mode="stateless") if stateless:
            return FlashBuild(code=code.filename, code_format=code.format)
        case _ if stateless:
            return f"its flash is in mode {flash.mode}, and the guest's firmware is to be stateless"
        case _:
            return f"its flash is in mode {flash.mode}, without an NVRAM template to copy"


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


def _none(candidates: Sequence[Candidate], wanted: FirmwareWanted) -> NoFirmware:
    reasons = "; ".join(f"{candidate.path}: {candidate.reason}" for candidate in candidates)
    kind = "stateless " if wanted.stateless else ""
    return NoFirmware(
        f"no {kind}firmware here can start a guest of {wanted.generation} on {wanted.machine}:"
        f" {reasons or 'there is no descriptor'}",
        remedy=remedy_of(wanted.generation),
    )


def remedy_of(generation: Generation) -> str:
    """What to install where no firmware can start a guest of ``generation``."""
    return _REMEDIES[generation]


_REMEDIES: Final = {
    Generation.SEV: "install OVMF with feature amd-sev and without Secure Boot (Debian: ovmf)",
    Generation.SEV_ES: "install OVMF with feature amd-sev-es (Debian after 13: ovmf-amdsev, for images with"
    " hw_firmware_stateless=true), or put a descriptor of your own build into /etc/qemu/firmware",
    Generation.SEV_SNP: "install OVMF with feature amd-sev-snp, mapped as memory (Debian after 13: ovmf-amdsev),"
    " or put a descriptor of your own build into /etc/qemu/firmware",
}
