"""The one root of every error that this project raises on purpose."""

from typing import ClassVar


class SevAgentError(Exception):
    """An error with a machine-readable code and a text for the person who must act.

    ``code`` is stable and dotted (``image.backing_file``); it goes into replies, notifications, metrics and logs.
    ``retryable`` says whether the same request may succeed later or on another host.
    ``field`` names the part of the input at fault, as a path (``instance.flavor.memory_mb``), where there is one.
    ``remedy`` says what to set or do.
    """

    code: ClassVar[str] = "internal"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, field: str | None = None, remedy: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.remedy = remedy

    def __str__(self) -> str:
        where = f"{self.field}: " if self.field else ""
        # Behind a list, the remedy would seem to be of its last line alone.
        apart = "\n" if "\n" in self.message else " "
        what_next = f"{apart}({self.remedy})" if self.remedy else ""
        return f"{where}{self.message}{what_next}"


class InvalidRequest(SevAgentError):
    """A request that can never succeed as it is."""

    code = "request.invalid"


class NotFound(SevAgentError):
    """What was asked for does not exist."""

    code = "not_found"


class Conflict(SevAgentError):
    """The request contradicts what already exists."""

    code = "conflict"


class HostTaken(Conflict):
    """Another daemon serves this host already; two would undo each other's work."""

    code = "host.taken"


class Unavailable(SevAgentError):
    """A service that is needed cannot be reached, or does not answer in time."""

    code = "unavailable"
    retryable = True


class Exhausted(SevAgentError):
    """A finite resource of this host is used up; another host may have it."""

    code = "exhausted"
    retryable = True
