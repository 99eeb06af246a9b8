"""A firmware that can start guests of each generation is installed: QEMU's firmware descriptors."""

from functools import partial
from pathlib import Path

from sev_agent.domain.firmware import FirmwareWanted, FlashBuild, MemoryBuild, judge_firmware, remedy_of
from sev_agent.host.check import Check, Finding, judged
from sev_agent.host.evidence import Evidence
from sev_agent.host.layer import Layer
from sev_agent.hypervisor.firmware_descriptors import descriptors
from sev_agent.sev.generation import Generation

DIRECTORIES = ("etc/qemu/firmware", "usr/share/qemu/firmware")


def look(generation: Generation, evidence: Evidence) -> Finding:
    directories = evidence.firmware_dirs or tuple(evidence.files.root / directory for directory in DIRECTORIES)
    found = descriptors(directories)
    expected = f"firmware with feature {generation.value}, and its files"
    remedy = (
        f"{remedy_of(generation)}; 'sev-agent firmware --generation {generation.value}' tells of each that is there"
    )
    # Some builds are for guests without firmware variables only, which their image must say.
    for asks_stateless in (False, True):
        candidates, chosen = judge_firmware(found, FirmwareWanted(generation=generation, asks_stateless=asks_stateless))
        if chosen is not None:
            break
    else:
        count = f"none of {len(candidates)} descriptors fits" if candidates else "there is no descriptor"
        source = ", ".join(map(str, directories))
        return judged(passed=False, expected=expected, found=count, source=source, remedy=remedy)
    descriptor, build = chosen
    missing = [str(path) for path in _parts(build) if not _exists(evidence, path)]
    limited = asks_stateless and generation is not Generation.SEV_SNP
    return judged(
        passed=not missing,
        expected=expected,
        found=f"{', '.join(missing)} is absent"
        if missing
        else f"{build.code}{', for images with hw_firmware_stateless=true only' if limited else ''}",
        source=str(descriptor),
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
