"""XML elements, written in one line each."""

from lxml import etree

Element = etree._Element  # noqa: SLF001  lxml has no public name for the type of its elements


def add(parent: Element, tag: str, text: str | None = None, /, **attributes: str) -> Element:
    """Append ``<tag>`` to ``parent``, and return it. Raises ``ValueError`` for text that XML cannot carry."""
    child = etree.SubElement(parent, tag, attributes)
    child.text = text
    return child
