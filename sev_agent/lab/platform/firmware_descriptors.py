"""Firmware descriptors for the generations that Debian's own do not name; its files serve the simulated platform well.

Format: QEMU's ``docs/interop/firmware.json``.
"""

import json
from pathlib import Path
from typing import Any

from sev_agent.lab.platform.emulator.kind import Kind

_TARGETS = [{"architecture": "x86_64", "machines": ["pc-q35-*"]}]
_CODE = {"filename": "/usr/share/OVMF/OVMF_CODE_4M.fd", "format": "raw"}
_VARIABLES = {"filename": "/usr/share/OVMF/OVMF_VARS_4M.fd", "format": "raw"}

# It has the metadata that a SEV-SNP launch needs, which the image of 4 MiB lacks.
_STATELESS = "/usr/share/ovmf/OVMF.fd"


def write_descriptors(directory: Path, kind: Kind) -> None:
    """Make ``directory`` hold what a host of ``kind`` needs beside the distribution's descriptors. Blocks."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in _descriptors(kind).items():
        (directory / name).write_text(json.dumps(content, indent=4) + "\n")


def _descriptors(kind: Kind) -> dict[str, dict[str, Any]]:
    match kind:
        case Kind.SEV_ES:
            flash = {"device": "flash", "mode": "split", "executable": _CODE, "nvram-template": _VARIABLES}
            return {"65-lab-amd-sev-es.json": _descriptor("UEFI firmware for SEV-ES", flash, "amd-sev-es")}
        case Kind.SEV_SNP:
            memory = {"device": "memory", "filename": _STATELESS}
            return {"65-lab-amd-sev-snp.json": _descriptor("UEFI firmware for SEV-SNP", memory, "amd-sev-snp")}
        case _:
            return {}


def _descriptor(description: str, mapping: dict[str, Any], feature: str) -> dict[str, Any]:
    return {
        "description": f"{description}, without Secure Boot, of the lab",
        "interface-types": ["uefi"],
        "mapping": mapping,
        "targets": _TARGETS,
        "features": [feature, "verbose-dynamic"],
        "tags": [],
    }
