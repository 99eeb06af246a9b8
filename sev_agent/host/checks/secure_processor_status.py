"""The secure processor answers, and its firmware is new enough.

Linux needs API version 1.51 for SEV-SNP (``drivers/crypto/ccp/sev-dev.h``, SNP_MIN_API_MAJOR and _MINOR).
"""

from sev_agent.host.check import SNP, Check, Finding, judged
from sev_agent.host.checks import device_nodes, module_parameters
from sev_agent.host.evidence import Evidence
from sev_agent.host.layer import Layer
from sev_agent.hypervisor.secure_processor import DEVICE, Command, Status, platform_status
from sev_agent.sev.generation import Generation

STATUS = "psp.status"
SNP_STATUS = "psp.snp_status"
SNP_VERSION = "psp.snp_version"

_LEAST_FOR_SNP = (1, 51)
_UPDATE = (
    "update the secure processor's firmware: a newer BIOS, or linux-firmware's amd/amd_sev_*.sbin (amd64-microcode)"
)


def look_at_status(evidence: Evidence) -> Finding:
    return _ask(evidence, Command.SEV_PLATFORM_STATUS)


def look_at_snp_status(evidence: Evidence) -> Finding:
    return _ask(evidence, Command.SNP_PLATFORM_STATUS)


def look_at_version(evidence: Evidence) -> Finding:
    status = platform_status(evidence.files, Command.SEV_PLATFORM_STATUS)
    return judged(
        passed=(status.api_major, status.api_minor) >= _LEAST_FOR_SNP,
        expected="API 1.51 or newer",
        found=f"API {status.api}",
        source=evidence.files.where(DEVICE),
        remedy=_UPDATE,
    )


def _ask(evidence: Evidence, command: Command) -> Finding:
    source = f"{evidence.files.where(DEVICE)}, {command.name}"
    expected = "an answer"
    try:
        found = _describe(platform_status(evidence.files, command))
    except (FileNotFoundError, PermissionError):
        raise
    except OSError as error:
        remedy = f"'dmesg | grep -i ccp' says what the secure processor met; {_UPDATE}"
        return judged(passed=False, expected=expected, found=error.strerror or str(error), source=source, remedy=remedy)
    return judged(passed=True, expected=expected, found=found, source=source, remedy="")


def _describe(status: Status) -> str:
    guests = f"{status.guests} guest{'' if status.guests == 1 else 's'}"
    return f"API {status.api}, build {status.build}, state {status.state_name}, {guests}"


CHECKS = (
    Check(
        name=STATUS,
        title="Secure processor answers",
        layer=Layer.SECURE_PROCESSOR,
        look=look_at_status,
        needs=(device_nodes.SEV,),
    ),
    Check(
        name=SNP_VERSION,
        title="Secure processor's firmware new enough for amd-sev-snp",
        layer=Layer.SECURE_PROCESSOR,
        look=look_at_version,
        generations=SNP,
        needs=(STATUS,),
    ),
    Check(
        name=SNP_STATUS,
        title="Secure processor runs SEV-SNP",
        layer=Layer.SECURE_PROCESSOR,
        look=look_at_snp_status,
        generations=SNP,
        needs=(SNP_VERSION, module_parameters.name(Generation.SEV_SNP)),
    ),
)
