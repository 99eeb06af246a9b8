"""Microversions: which are served, and which one a request asks for.

The rules are those of OpenStack's API special interest group, as Nova follows them.
"""

import re
from collections.abc import Mapping
from typing import Final, NamedTuple

from sev_agent.api.faults import BadRequest, NotAcceptable

HEADER: Final = "OpenStack-API-Version"
LEGACY_HEADER: Final = "X-OpenStack-Nova-API-Version"
_SERVICE: Final = "compute"
_FORM: Final = re.compile(r"([1-9]\d{0,3})\.(0|[1-9]\d{0,3})")


class Microversion(NamedTuple):
    """Such as 2.37."""

    major: int
    minor: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"


MINIMUM: Final = Microversion(2, 1)
MAXIMUM: Final = Microversion(2, 61)
"""The newest whose changes to what is offered here are all made."""


def negotiate(headers: Mapping[str, str]) -> Microversion:
    """The microversion that a request asks for, the oldest where it asks for none.

    Raises ``BadRequest`` for what is no version, ``NotAcceptable`` for one that is not served.
    """
    text = _asked(headers)
    if text is None:
        return MINIMUM
    if text == "latest":
        return MAXIMUM
    found = _FORM.fullmatch(text)
    if found is None:
        raise BadRequest(
            f"API Version String '{text[:40]}' is of invalid format. Must be of format MajorNum.MinorNum.", field=HEADER
        )
    version = Microversion(int(found[1]), int(found[2]))
    if not MINIMUM <= version <= MAXIMUM:
        raise NotAcceptable(
            f"Version {version} is not supported by the API. Minimum is {MINIMUM} and maximum is {MAXIMUM}."
        )
    return version


def answer_headers(version: Microversion) -> dict[str, str]:
    """What every answer says of the microversion that it is in."""
    return {HEADER: f"{_SERVICE} {version}", LEGACY_HEADER: str(version), "Vary": f"{HEADER}, {LEGACY_HEADER}"}


def _asked(headers: Mapping[str, str]) -> str | None:
    # One header may name the versions of several services: "compute 2.37, identity 3.1".
    for part in headers.get(HEADER, "").split(","):
        service, _, version = part.strip().partition(" ")
        if service.lower() == _SERVICE:
            return version.strip().lower()
    legacy = headers.get(LEGACY_HEADER)
    return None if legacy is None else legacy.strip().lower()
