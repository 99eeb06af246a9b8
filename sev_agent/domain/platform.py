"""Small devices of the machine, and those that libvirt would add by itself."""

from sev_agent.domain.element import Element, add
from sev_agent.domain.spec import DomainSpec
from sev_agent.domain.virtio import add_iommu


def configure_emulator(spec: DomainSpec, devices: Element) -> None:
    add(devices, "emulator", str(spec.emulator))


def configure_usb(_spec: DomainSpec, devices: Element) -> None:
    """None, by name: libvirt adds one where none is refused."""
    add(devices, "controller", type="usb", index="0", model="none")


def configure_watchdog(_spec: DomainSpec, devices: Element) -> None:
    """Part of q35's chipset: libvirt (9.1 and later) names it where it is not named. Idle until the guest arms it."""
    add(devices, "watchdog", model="itco", action="reset")


def configure_balloon(_spec: DomainSpec, devices: Element) -> None:
    """None, by name: libvirt adds one where none is refused. Pinned pages cannot be given back."""
    add(devices, "memballoon", model="none")


def configure_rng(_spec: DomainSpec, devices: Element) -> None:
    """Entropy for the first boot."""
    rng = add(devices, "rng", model="virtio")
    add(rng, "backend", "/dev/urandom", model="random")
    add_iommu(rng)
