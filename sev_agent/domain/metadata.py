"""What the domain remembers of its instance, and how a domain of this agent is told from a foreign one."""

from uuid import UUID

from lxml import etree

from sev_agent.domain.element import Element, add
from sev_agent.domain.spec import DomainSpec, GuestMetadata
from sev_agent.domain.xml import DomainXmlInvalid
from sev_agent.sev.generation import Generation

NAMESPACE = "urn:sev-agent:instance:1"
_TAG = f"{{{NAMESPACE}}}instance"

_NOVA_NAMESPACES = ("http://openstack.org/xmlns/libvirt/nova/1.1", "http://openstack.org/xmlns/libvirt/nova/1.0")
"""Of the metadata that Nova's libvirt driver writes into each of its domains (nova, ``virt/libvirt/config.py``)."""


def configure(spec: DomainSpec, domain: Element) -> None:
    """One element with attributes: libvirt drops text that is only blanks, attributes it keeps as they are."""
    known = spec.metadata
    parent = add(domain, "metadata")
    attributes = {
        "uuid": str(known.uuid),
        "name": known.name,
        "project_id": known.project_id,
        "user_id": known.user_id,
        "flavor": known.flavor,
        "image_id": str(known.image_id),
        "generation": known.generation.value,
        "creator": known.creator,
        "firmware_sha256": known.firmware_sha256,
    }
    etree.SubElement(parent, _TAG, attributes, nsmap={"sev": NAMESPACE})


def read(domain: Element) -> GuestMetadata | None:
    """Raises ``DomainXmlInvalid`` where the element is there, but not as ``configure`` writes it."""
    found = domain.find(f"metadata/{_TAG}")
    if found is None:
        return None
    try:
        known = {str(name): str(value) for name, value in found.attrib.items()}
        return GuestMetadata(
            uuid=UUID(known["uuid"]),
            name=known["name"],
            project_id=known["project_id"],
            user_id=known["user_id"],
            flavor=known["flavor"],
            image_id=UUID(known["image_id"]),
            generation=Generation(known["generation"]),
            creator=known["creator"],
            firmware_sha256=known.get("firmware_sha256", ""),
        )
    except (KeyError, ValueError) as error:
        raise DomainXmlInvalid(
            f"the instance metadata of domain {domain.findtext('name')!r} cannot be read: {error!r}",
            remedy=f"remove the metadata element of {NAMESPACE}, or restore it",
        ) from error


def is_novas(domain: Element) -> bool:
    """Whether Nova made the domain."""
    return any(domain.find(f"metadata/{{{namespace}}}instance") is not None for namespace in _NOVA_NAMESPACES)
