"""A firmware that can start guests of each generation is installed: QEMU's firmware descriptors."""

from functools import partial
from pathlib import Path

from sev_agent.domain.firmware import FirmwareWanted, FlashBuild, MemoryBuild, NoFirmware, choose_firmware
from sev_agent.host.check import Check, Finding, judged
from sev_agent.host.evidence import Evidence
from sev_agent.host.layer import Layer
from sev_agent.hypervisor.firmware_descriptors import descriptors
from sev_agent.sev.generation import Generation

DIRECTORIES = ("etc/qemu/firmware", "usr/share/qemu/firmware")


def look(generation: Generation, evidence: Evidence) -> Finding:
    directories = evidence.firmware_dirs or tuple(evidence.files.root / directory for directory in DIRECTORIES)
    expected = f"a descriptor with feature {generation.value}, and its files"
    source = ", ".join(map(str, directories))
    remedy = f"install OVMF with {generation.value} (Debian: ovmf, from backports if it lacks it; RHEL: edk2-ovmf)"
    try:
        choice = choose_firmware(descriptors(directories), FirmwareWanted(generation=generation))
    except NoFirmware as error:
        return judged(passed=False, expected=expected, found=error.message, source=source, remedy=remedy)
    missing = [str(path) for path in _parts(choice.build) if not _exists(evidence, path)]
    return judged(
        passed=not missing,
        expected=expected,
        found=f"{', '.join(missing)} is absent" if missing else str(choice.code),
        source=str(choice.descriptor),
        remedy=remedy,
    )


def _parts(build: FlashBuild | MemoryBuild) -> list[Path]:
    template = build.nvram_template if isinstance(build, FlashBuild) else None
    return [build.code] if template is None else [build.code, template]


def _exists(evidence: Evidence, path: Path) -> bool:
    return path.exists() if evidence.firmware_dirs else evidence.files.exists(str(path).lstrip("/"))


CHECKS = tuple(
    Check(
        name=f"ovmf.{generation.name.lower()}",
        title=f"Firmware for {generation.value}",
        layer=Layer.OVMF,
        look=partial(look, generation),
        generations=frozenset({generation}),
        decisive=True,
    )
    for generation in Generation
)
