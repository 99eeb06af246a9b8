"""The status page, read as strictly as a browser's parser can."""

from xml.etree import ElementTree as ET

import html5lib


def read(html: str) -> ET.Element:
    """The document; anything that is not HTML as it should be fails here."""
    root = html5lib.HTMLParser(strict=True, namespaceHTMLElements=False).parse(html)
    assert isinstance(root, ET.Element)
    return root


def words(element: ET.Element) -> str:
    return " ".join("".join(element.itertext()).split())


def rows(root: ET.Element, heading: str) -> list[list[str]]:
    """The cells of the table under ``heading``, without its head."""
    section = next(each for each in root.iter("section") if words(each[0]) == heading)
    return [[words(cell) for cell in row] for body in section.iter("tbody") for row in body]
