"""The kernel was built with what encrypted guests need, one check for each option."""

from functools import partial

from sev_agent.host import kernel
from sev_agent.host.check import ADVICE, ALL, SNP, Check, Finding, judged, unknown
from sev_agent.host.evidence import Evidence
from sev_agent.host.layer import Layer
from sev_agent.sev.generation import Generation

_REBUILD = (
    "install the distribution's standard kernel, which has it (Debian: linux-image-amd64, Ubuntu: linux-image-generic, "
    "RHEL: kernel; cloud and minimal flavours may not), or set {option} and build it (Debian: make bindeb-pkg)"
)
_OPTIONS: dict[str, tuple[frozenset[str], frozenset[Generation]]] = {
    "CONFIG_AMD_MEM_ENCRYPT": (frozenset({"y"}), ALL),
    "CONFIG_KVM_AMD": (frozenset({"y", "m"}), ALL),
    "CONFIG_CRYPTO_DEV_SP_PSP": (frozenset({"y"}), ALL),
    "CONFIG_KVM_AMD_SEV": (frozenset({"y"}), ALL),
    "CONFIG_AMD_IOMMU": (frozenset({"y"}), SNP),
    # The kernel then does not count slots; libvirt's numbers and the configuration do.
    "CONFIG_CGROUP_MISC": (frozenset({"y"}), ADVICE),
}


def name(option: str) -> str:
    return "kernel." + option.removeprefix("CONFIG_").lower()


NAMES = tuple(name(option) for option, (_, generations) in _OPTIONS.items() if generations == ALL)
"""What every generation needs."""


def look(option: str, values: frozenset[str], evidence: Evidence) -> Finding:
    expected = f"{option}={' or '.join(sorted(values, reverse=True))}"
    config = kernel.config(evidence.files)
    if config is None:
        return unknown(
            expected=expected,
            found="the kernel's configuration is not there",
            source=evidence.files.where(f"boot/config-{kernel.release(evidence.files)}"),
            remedy="put the kernel's .config there, or run a kernel with CONFIG_IKCONFIG_PROC",
        )
    value = config.value(option)
    return judged(
        passed=value in values,
        expected=expected,
        found=f"{option} is not set" if value in {None, "n"} else f"{option}={value}",
        source=config.source,
        remedy=_REBUILD.format(option=option),
    )


CHECKS = tuple(
    Check(
        name=name(option),
        title=f"Kernel built with {option}",
        layer=Layer.KERNEL_BUILD,
        look=partial(look, option, values),
        generations=generations,
    )
    for option, (values, generations) in _OPTIONS.items()
)
