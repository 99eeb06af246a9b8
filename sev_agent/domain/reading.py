"""What a reconciler asks of a domain that libvirt shows: whether it is ours, and whether it is encrypted."""

from sev_agent.domain import launch_security, metadata
from sev_agent.domain.spec import GuestMetadata
from sev_agent.domain.xml import parse_domain
from sev_agent.sev.generation import Generation


def read_metadata(xml: str) -> GuestMetadata | None:
    """The instance that the domain was built for; ``None`` where this agent did not build it.

    Raises ``DomainXmlInvalid``.
    """
    return metadata.read(parse_domain(xml))


def encryption_of(xml: str) -> Generation | None:
    """The generation of memory encryption of the domain, or ``None``. Raises ``DomainXmlInvalid``."""
    return launch_security.read(parse_domain(xml))
