"""One configurator, run alone."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from lxml import etree

from sev_agent.domain.element import Element
from sev_agent.domain.spec import DomainSpec
from tests.golden.cases import MINIMAL


def configured(configure: Callable[[DomainSpec, Element], None], **changes: Any) -> Element:
    """What ``configure`` makes in an empty element for the minimal domain with ``changes``."""
    parent = etree.Element("parent")
    configure(replace(MINIMAL, **changes), parent)
    return parent


def texts(parent: Element) -> list[str]:
    """The children of ``parent`` as XML, one each."""
    return [etree.tostring(child, encoding="unicode") for child in parent]
