"""What the API offers, as data: each route with its models, so that requests are checked and documented from one place.

A group of routes is a module with a class whose ``routes()`` returns them; ``service.py`` puts the groups together.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict

from sev_agent.api.caller import Caller, Role
from sev_agent.api.microversion import MINIMUM, Microversion

M = TypeVar("M", bound=BaseModel)


class Body(BaseModel):
    """A request's body, or a part of it: strict about types, and refusing what it does not know."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class Query(BaseModel):
    """A request's query parameters. Unknown ones are ignored, as the compute API does."""

    model_config = ConfigDict(frozen=True, extra="ignore")


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request, authenticated and checked. ``base`` begins links: scheme, host and path up to the version.

    ``parameters`` are those of the path. ``body`` and ``query`` are of the route's models.
    """

    caller: Caller
    version: Microversion
    request_id: str
    base: str
    parameters: Mapping[str, str]
    body: BaseModel | None
    query: BaseModel | None

    def body_as(self, model: type[M]) -> M:
        assert isinstance(self.body, model), "the route says so"
        return self.body

    def query_as(self, model: type[M]) -> M:
        assert isinstance(self.query, model), "the route says so"
        return self.query


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What is sent back, where it is more than the route's usual status with a body."""

    body: Mapping[str, Any] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    status: int | None = None


Handler = Callable[[Call], Awaitable[Mapping[str, Any] | Answer | None]]
"""Returns the answer's body, ``None`` for none, or an ``Answer``. Raises ``SevAgentError``, which becomes a fault."""


@dataclass(frozen=True, slots=True)
class Route:
    """One operation. ``path`` is below ``/v2.1``; ``name`` is its ``operationId``.

    ``status`` is that of a success; ``other_statuses`` are those of a success in other microversions or cases.
    ``role`` is what the caller needs at least. ``since`` and ``until`` bound the microversions that have it.
    """

    method: str
    path: str
    name: str
    handler: Handler
    _: KW_ONLY
    role: Role = Role.READER
    status: int = 200
    other_statuses: tuple[int, ...] = ()
    body: type[BaseModel] | None = None
    query: type[BaseModel] | None = None
    since: Microversion = MINIMUM
    until: Microversion | None = None

    @property
    def summary(self) -> str:
        """What it does: the first line of the handler's docstring."""
        return (self.handler.__doc__ or "").partition("\n")[0]
