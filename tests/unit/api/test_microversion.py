import pytest

from sev_agent.api.faults import BadRequest, NotAcceptable
from sev_agent.api.microversion import HEADER, LEGACY_HEADER, MAXIMUM, MINIMUM, Microversion, negotiate


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, MINIMUM),
        ({HEADER: "compute 2.37"}, Microversion(2, 37)),
        ({HEADER: "identity 3.1, Compute 2.10"}, Microversion(2, 10)),
        ({HEADER: "identity 3.1"}, MINIMUM),
        ({HEADER: "compute latest"}, MAXIMUM),
        ({LEGACY_HEADER: "2.3"}, Microversion(2, 3)),
        ({HEADER: "compute 2.5", LEGACY_HEADER: "2.3"}, Microversion(2, 5)),
    ],
)
def test_what_is_asked_for(headers: dict[str, str], expected: Microversion) -> None:
    """The new header before the old one, the service's own entry in it, the oldest without either."""
    assert negotiate(headers) == expected


@pytest.mark.parametrize("text", ["2", "2.x", "2.01", "2.1.1", "", "2.99999", "-2.1", "2.1 "])
def test_what_is_no_version(text: str) -> None:
    """400; nothing is guessed. A space around it is none of it."""
    if text.strip() == "2.1":
        assert negotiate({LEGACY_HEADER: text}) == MINIMUM
        return
    with pytest.raises(BadRequest, match="invalid format"):
        negotiate({LEGACY_HEADER: text})


@pytest.mark.parametrize("text", ["2.0", "1.1", "3.0", "2.100", f"2.{MAXIMUM.minor + 1}"])
def test_what_is_not_served(text: str) -> None:
    """406, with what is."""
    with pytest.raises(NotAcceptable, match=f"Minimum is 2.1 and maximum is {MAXIMUM}"):
        negotiate({HEADER: f"compute {text}"})
