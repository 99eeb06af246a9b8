"""Machine type, firmware, and what the guest's power events do."""

from sev_agent.domain.element import Element, add
from sev_agent.domain.spec import DomainSpec, Firmware, KernelBoot, Rom, SplitFlash, StatelessFlash


def configure_os(spec: DomainSpec, domain: Element) -> None:
    """Loader and NVRAM by name. libvirt's own choice takes Secure Boot firmware, which needs SMM, for SEV guests."""
    os = add(domain, "os")
    add(os, "type", "hvm", arch="x86_64", machine=spec.machine)
    _firmware(spec.firmware, os)
    if spec.kernel is not None:
        _kernel(spec.kernel, os)
    add(os, "smbios", mode="sysinfo")


def _firmware(firmware: Firmware, os: Element) -> None:
    match firmware:
        case SplitFlash():
            add(os, "loader", str(firmware.code), readonly="yes", type="pflash", format=firmware.code_format.value)
            template, nvram_format = str(firmware.nvram_template), firmware.nvram_format.value
            add(os, "nvram", str(firmware.nvram), template=template, format=nvram_format)
        case StatelessFlash():
            attributes = {"readonly": "yes", "type": "pflash", "stateless": "yes"}
            add(os, "loader", str(firmware.code), **attributes, format=firmware.code_format.value)
        case Rom():
            add(os, "loader", str(firmware.code), type="rom", stateless="yes")


def _kernel(boot: KernelBoot, os: Element) -> None:
    add(os, "kernel", str(boot.kernel))
    if boot.ramdisk is not None:
        add(os, "initrd", str(boot.ramdisk))
    if boot.command_line:
        add(os, "cmdline", boot.command_line)


def configure_features(_spec: DomainSpec, domain: Element) -> None:
    """ACPI and APIC, as UEFI needs. No ``<vmcoreinfo>``: its DMA crashes encrypted guests.

    The VMware port exchanges whole registers with the host, which it cannot see with SEV-ES.
    """
    features = add(domain, "features")
    add(features, "acpi")
    add(features, "apic")
    add(features, "vmport", state="off")


def configure_clock(_spec: DomainSpec, domain: Element) -> None:
    """UTC, and Nova's timers."""
    clock = add(domain, "clock", offset="utc")
    add(clock, "timer", name="pit", tickpolicy="delay")
    add(clock, "timer", name="rtc", tickpolicy="catchup")
    add(clock, "timer", name="hpet", present="no")


def configure_events(_spec: DomainSpec, domain: Element) -> None:
    """A crash ends the domain: restarting it by itself would hide it from the count, and dump what cannot be read."""
    add(domain, "on_poweroff", "destroy")
    add(domain, "on_reboot", "restart")
    add(domain, "on_crash", "destroy")
    power = add(domain, "pm")
    # The firmware cannot resume an encrypted guest.
    add(power, "suspend-to-mem", enabled="no")
    add(power, "suspend-to-disk", enabled="no")
