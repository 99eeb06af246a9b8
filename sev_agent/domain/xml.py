"""Domain XML from outside, parsed without trust."""

from lxml import etree

from sev_agent.domain.element import Element
from sev_agent.errors import SevAgentError


class DomainXmlInvalid(SevAgentError):
    """A domain's XML cannot be understood."""

    code = "domain.xml_invalid"


def parse_domain(xml: str) -> Element:
    """The ``<domain>`` element of ``xml``. Raises ``DomainXmlInvalid``.

    No entity is resolved, no document type or file is loaded, and lxml's bounds on size and depth stand.
    """
    # A parser keeps state while it works; one for each call lets worker threads parse side by side.
    parser = etree.XMLParser(
        resolve_entities=False, no_network=True, load_dtd=False, dtd_validation=False, huge_tree=False, remove_pis=True
    )
    try:
        root = etree.fromstring(xml.encode(), parser)
    except (etree.XMLSyntaxError, UnicodeEncodeError) as error:
        raise DomainXmlInvalid(f"this is not XML: {error}") from error
    if root.getroottree().docinfo.doctype:  # type: ignore[union-attr]  # absent from the stubs, not from lxml
        raise DomainXmlInvalid("a domain's XML has no document type")
    if root.tag != "domain":
        raise DomainXmlInvalid(f"<{root.tag}> is not a domain")
    return root
