"""The kernel module that runs guests on AMD's processors, and its parameters."""

from typing import Final

from sev_agent.hypervisor.host_files import HostFiles
from sev_agent.sev.generation import Generation

MODULE: Final = "sys/module/kvm_amd"
PARAMETERS: Final = {Generation.SEV: "sev", Generation.SEV_ES: "sev_es", Generation.SEV_SNP: "sev_snp"}

IS_ON: Final = frozenset({"", "1", "y", "Y", "on"})
"""How a parameter of type bool is set on a boot line and in modprobe.d; a bare name sets it too."""


def parameter(files: HostFiles, name: str) -> str | None:
    """The value that the kernel shows; None where the module, or this kernel's module, has no such parameter."""
    text = files.text_or_none(f"{MODULE}/parameters/{name}")
    return None if text is None else text.strip()


def is_on(value: str | None) -> bool:
    """The kernel writes ``Y`` for a parameter of type bool, ``1`` for the older int."""
    return value in {"1", "Y", "y"}
