"""The words that the boot line needs for each generation."""

from typing import Final

from sev_agent.errors import Conflict
from sev_agent.host import boot_line, kvm_amd
from sev_agent.host.checks.boot_iommu import obstacles
from sev_agent.host.modprobe import Option
from sev_agent.hypervisor.host_files import HostFiles
from sev_agent.sev.generation import Generation

_PARAMETERS: Final = {
    Generation.SEV: {"sev": "1"},
    Generation.SEV_ES: {"sev": "1", "sev_es": "1"},
    Generation.SEV_SNP: {"sev": "1", "sev_es": "1", "sev_snp": "1"},
}


class PreparationRefused(Conflict):
    """The host says something that this command does not understand, or that somebody must have meant."""

    code = "preparation.refused"


def parameters(generation: Generation, files: HostFiles) -> dict[str, str]:
    """kvm_amd's parameters for ``generation``. SEV-ES needs SEV-SNP off, where this kernel has it (CVE-2025-48514)."""
    wanted = dict(_PARAMETERS[generation])
    if generation is Generation.SEV_ES and files.exists(f"{kvm_amd.MODULE}/parameters/sev_snp"):
        wanted["sev_snp"] = "0"
    return wanted


def words(generation: Generation, files: HostFiles) -> tuple[str, ...]:
    """What the boot line must have, such as ``kvm_amd.sev=1``."""
    settings = (f"kvm_amd.{name}={value}" for name, value in parameters(generation, files).items())
    return ("mem_encrypt=on", *settings)


def missing(line: boot_line.BootLine, wanted: tuple[str, ...]) -> tuple[str, ...]:
    """Those of ``wanted`` that ``line`` does not say already."""

    def says(word: str) -> bool:
        name, _, value = word.partition("=")
        present = line.value(name)
        return present == value or (value == "1" and present in kvm_amd.IS_ON)

    return tuple(word for word in wanted if not says(word))


def refuse_contradiction(
    line: boot_line.BootLine, source: str, wanted: tuple[str, ...], generation: Generation
) -> None:
    """Raise ``PreparationRefused`` where ``line`` says the opposite of what is wanted: somebody meant that."""
    for word in missing(line, wanted):
        name, _, _ = word.partition("=")
        if (present := line.value(name)) is not None:
            raise PreparationRefused(
                f"{source} says {name}={present}, and {generation.value} needs {word}",
                remedy=f"take {name}={present} away there, if it is not wanted any more, and run this again; if this "
                "command wrote it, for another generation, start with --undo",
            )
    if generation is Generation.SEV_SNP and (found := obstacles(line)):
        raise PreparationRefused(
            f"{source} says {', '.join(found)}, with which Linux does not enable SEV-SNP",
            remedy="take it away there, if nothing needs it, and run this again",
        )


def refuse_contradicting_options(options: list[Option], wanted: dict[str, str]) -> None:
    """Raise ``PreparationRefused`` where another file of modprobe.d says the opposite."""
    for option in options:
        value = wanted.get(option.parameter)
        if value is not None and (option.value in kvm_amd.IS_ON) is not (value in kvm_amd.IS_ON):
            raise PreparationRefused(
                f"{option.source} says 'options kvm_amd {option.parameter}={option.value}'",
                remedy="take that away, if it is not wanted any more, and run this again",
            )
