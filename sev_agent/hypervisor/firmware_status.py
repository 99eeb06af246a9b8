"""What the secure processor's firmware means by the status with which it ends a step of a launch.

Source: AMD 55766 (SEV API) and AMD 56860 (SEV-SNP Firmware ABI), both chapter "Status Codes".
"""

from typing import Final

from sev_agent.hypervisor.errors import NoSlot
from sev_agent.hypervisor.launch_errors import (
    CHECK,
    PROCESSOR,
    REPORT,
    SLOTS,
    LaunchIdentityRefused,
    LaunchPolicyRefused,
    LaunchUnsupported,
    Layer,
    PlatformBroken,
    PlatformNotReady,
    Symptom,
)

_FW: Final = Layer.SECURE_PROCESSOR

STATUS: Final = {
    1: Symptom(_FW, PlatformNotReady, "the platform is not initialized", f"{CHECK}, then reload kvm_amd"),
    2: Symptom(_FW, PlatformNotReady, "the guest is in the wrong state of its launch", REPORT),
    3: Symptom(_FW, PlatformNotReady, "the platform is configured otherwise than it needs", f"{CHECK} (BIOS)"),
    4: Symptom(_FW, PlatformBroken, "a buffer was too small", REPORT),
    5: Symptom(_FW, PlatformNotReady, "the platform is owned by somebody else", "reset its ownership: sevctl reset"),
    6: Symptom(_FW, LaunchIdentityRefused, "a certificate is invalid", "make the guest's session for this host"),
    7: Symptom(
        _FW,
        LaunchPolicyRefused,
        "the guest's policy is not allowed here",
        "compare hw:mem_encryption_policy with this host: its firmware version, SMT, sockets; or use another host",
    ),
    8: Symptom(_FW, PlatformNotReady, "the guest is not active", REPORT),
    9: Symptom(_FW, PlatformBroken, "an address of guest memory is invalid", REPORT),
    10: Symptom(
        _FW,
        LaunchIdentityRefused,
        "a signature is wrong",
        "sign hw_snp_id_block anew, and give its hw_snp_id_auth",
    ),
    11: Symptom(
        _FW,
        LaunchIdentityRefused,
        "the measurement is not the expected one",
        "compute the measurement of hw_snp_id_block for this host's firmware, see 'sev-agent firmware'",
    ),
    12: Symptom(_FW, NoSlot, "the guest's slot (ASID) is owned by another guest", SLOTS),
    13: Symptom(
        _FW,
        PlatformNotReady,
        "the guest's slot (ASID) is out of range",
        f"{CHECK} (BIOS: lowest ASID of SEV)",
    ),
    14: Symptom(_FW, PlatformNotReady, "the caches must be written back first (WBINVD)", "try again"),
    15: Symptom(_FW, PlatformNotReady, "the data fabric must be flushed first (DF_FLUSH)", "try again"),
    16: Symptom(_FW, PlatformNotReady, "the guest's handle is invalid", REPORT),
    17: Symptom(_FW, LaunchUnsupported, "it does not know the command", PROCESSOR),
    18: Symptom(_FW, PlatformNotReady, "the guest is active already", REPORT),
    19: Symptom(
        _FW,
        PlatformBroken,
        "a hardware error of the platform",
        "power the host off and on; else replace it",
    ),
    20: Symptom(
        _FW,
        PlatformBroken,
        "the hardware is not safe any more",
        "take the host out of service, power it off and on",
    ),
    21: Symptom(_FW, LaunchUnsupported, "it does not support the feature", PROCESSOR),
    22: Symptom(_FW, LaunchUnsupported, "a parameter is invalid", REPORT),
    23: Symptom(_FW, NoSlot, "it has no room for one more guest", SLOTS),
    24: Symptom(
        _FW,
        PlatformBroken,
        "its own data fails the check of integrity",
        "clear the platform's data (sevctl reset; BIOS: erase SEV data), then power the host off and on",
    ),
    32: Symptom(_FW, PlatformNotReady, "the reverse map table is not initialized", f"{CHECK} (BIOS: SEV-SNP)"),
    33: Symptom(_FW, PlatformNotReady, "a security version is too old", PROCESSOR),
    34: Symptom(_FW, LaunchPolicyRefused, "a version is invalid", "compare abi= of the policy, or update"),
    35: Symptom(_FW, PlatformNotReady, "it must be shut down first", "stop all encrypted guests, reload kvm_amd"),
    38: Symptom(_FW, PlatformNotReady, "the reverse map table could not be made", f"{CHECK} (BIOS: SEV-SNP)"),
}
"""The status codes that a launch may end with, and what each means for the operator."""
