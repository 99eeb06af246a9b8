"""Yes and no in flavor extra specs and image properties, as OpenStack reads them."""

from collections.abc import Mapping

from sev_agent.sev.refusals import NotABoolean, Subject

# oslo_utils.strutils.bool_from_string
_TRUE = frozenset({"1", "t", "true", "on", "y", "yes"})
_FALSE = frozenset({"0", "f", "false", "off", "n", "no"})


def read_boolean(subject: Subject, properties: Mapping[str, str], name: str, *, settable: str = "true") -> bool | None:
    """The answer of property ``name``, or ``None`` where it is not set.

    Raises ``NotABoolean`` for any other value; ``settable`` is what its remedy says to set.
    """
    value = properties.get(name)
    if value is None:
        return None
    answer = value.strip().lower()
    if answer in _TRUE:
        return True
    if answer in _FALSE:
        return False
    raise NotABoolean(
        subject,
        name,
        expected="a boolean such as 'true' or 'false'",
        found=repr(value),
        remedy=subject.set_command(name, settable),
    )
