"""Who the domain is: for libvirt by name and UUID, for the guest by SMBIOS."""

from uuid import UUID

from sev_agent.domain.element import Element, add
from sev_agent.domain.spec import DomainSpec

VENDOR = "sev-agent"


def domain_name(uuid: UUID) -> str:
    """The libvirt name of an instance: its own name is the tenant's, and neither unique nor always a file name."""
    return f"instance-{uuid}"


def configure_names(spec: DomainSpec, domain: Element) -> None:
    add(domain, "name", spec.name)
    add(domain, "uuid", str(spec.uuid))
    add(domain, "title", spec.title)


def configure_smbios(spec: DomainSpec, domain: Element) -> None:
    """As Nova: the guest finds its UUID as its system's UUID and serial number.

    The product is not Nova's, by which cloud-init would look for a metadata service on the network; it finds its
    config drive by the label. libvirt refuses a UUID here that is not the domain's.
    """
    system = add(add(domain, "sysinfo", type="smbios"), "system")
    add(system, "entry", VENDOR, name="manufacturer")
    add(system, "entry", "Encrypted Instance", name="product")
    add(system, "entry", str(spec.uuid), name="serial")
    add(system, "entry", str(spec.uuid), name="uuid")
    add(system, "entry", "Virtual Machine", name="family")
