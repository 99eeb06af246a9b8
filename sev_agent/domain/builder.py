"""A domain's XML, put together by one configurator for each kind of device."""

from collections.abc import Callable

from lxml import etree

from sev_agent.domain import (
    boot,
    console,
    cpu,
    identity,
    launch_security,
    memory,
    metadata,
    network,
    platform,
    storage,
)
from sev_agent.domain.element import Element, add
from sev_agent.domain.spec import DomainSpec

Configurator = Callable[[DomainSpec, Element], None]

# In the order in which libvirt writes a domain, so that what we define and what it dumps read alike.
_DEVICES: tuple[Configurator, ...] = (
    platform.configure_emulator,
    storage.configure,
    platform.configure_usb,
    network.configure,
    console.configure,
    platform.configure_watchdog,
    platform.configure_balloon,
    platform.configure_rng,
)


def _devices(spec: DomainSpec, domain: Element) -> None:
    devices = add(domain, "devices")
    for configure in _DEVICES:
        configure(spec, devices)


_DOMAIN: tuple[Configurator, ...] = (
    identity.configure_names,
    metadata.configure,
    memory.configure,
    cpu.configure_count,
    identity.configure_smbios,
    boot.configure_os,
    boot.configure_features,
    cpu.configure_model,
    boot.configure_clock,
    boot.configure_events,
    _devices,
    launch_security.configure,
)


def build_domain(spec: DomainSpec) -> str:
    """The XML of ``spec``, without an XML declaration, indented, ending in a line feed."""
    domain = etree.Element("domain", {"type": spec.virt_type.value})
    for configure in _DOMAIN:
        configure(spec, domain)
    etree.indent(domain, "  ")
    return etree.tostring(domain, encoding="unicode") + "\n"
