"""How the API says no: the status and the body that OpenStack's compute API has for each reason."""

from collections.abc import Mapping
from typing import Any, ClassVar, Final

from aiohttp import web

from sev_agent.errors import Conflict, InvalidRequest, NotFound, SevAgentError, Unavailable
from sev_agent.openstack.exchange import RequestRefused, ServiceUnavailable
from sev_agent.openstack.identity import AuthenticationFailed, EndpointMissing

FAULT_TITLES = {
    400: "badRequest",
    401: "unauthorized",
    403: "forbidden",
    404: "itemNotFound",
    405: "badMethod",
    409: "conflictingRequest",
    413: "overLimit",
    415: "badMediaType",
    429: "overLimit",
    501: "notImplemented",
    503: "serviceUnavailable",
}
"""Nova's names of faults (``nova.api.openstack.wsgi.Fault``); every other status is a ``computeFault``."""

_MAX_MESSAGE = 4000

_PARTS: Final[Mapping[str, str]] = {
    "database.unavailable": "The database",
    "broker.unavailable": "RabbitMQ",
    "scheduler.never_ran": "The scheduler",
    "server.host_silent": "The host of the server",
}
"""What is away, by the code of the error that says so."""


class ApiFault(SevAgentError):
    """A request that is refused with ``status``."""

    status: ClassVar[int] = 400
    code = "api.bad_request"


class BadRequest(ApiFault):
    """The request can never succeed as it is."""


class Unauthorized(ApiFault):
    """No token, or one that Keystone does not know (any more)."""

    status = 401
    code = "api.unauthorized"


class Forbidden(ApiFault):
    """The caller lacks a role, or the project its quota."""

    status = 403
    code = "api.forbidden"


class ItemNotFound(ApiFault):
    """There is no such thing, or the caller may not know of it."""

    status = 404
    code = "api.not_found"


class NotAcceptable(ApiFault):
    """The microversion asked for is not served."""

    status = 406
    code = "api.not_acceptable"


class ConflictingRequest(ApiFault):
    """What is there, or its state, stands against it."""

    status = 409
    code = "api.conflict"


class TooLarge(ApiFault):
    """The body is larger than the API reads."""

    status = 413
    code = "api.too_large"


class BadMediaType(ApiFault):
    """The body is not declared to be JSON."""

    status = 415
    code = "api.media_type"


def status_of(error: SevAgentError) -> int:
    """The HTTP status of an error of this project, wherever in it it was raised."""
    match error:
        case ApiFault():
            return error.status
        case InvalidRequest():
            return 400
        case NotFound():
            return 404
        case Conflict():
            return 409
        case Unavailable() | AuthenticationFailed() | EndpointMissing() | RequestRefused():
            # The last three are faults of this service's configuration: nothing that the caller could mend.
            return 503
        case _:
            return 500


def text_for_tenants(error: SevAgentError) -> str:
    """What is away, of an error that is answered 503. Addresses, names and remedies are the operator's business."""
    match error:
        case ServiceUnavailable() | RequestRefused():
            part = error.service.capitalize()
        case AuthenticationFailed() | EndpointMissing():
            part = "Keystone"
        case _:
            part = _PARTS.get(error.code, "A part of this service")
    return f"{part} cannot be used at the moment. Ask again later, or tell the operator the id of this request."


def fault_body(status: int, message: str) -> dict[str, Any]:
    """Nova's error body."""
    return {FAULT_TITLES.get(status, "computeFault"): {"code": status, "message": message[:_MAX_MESSAGE]}}


def fault_response(status: int, message: str) -> web.Response:
    return web.json_response(fault_body(status, message), status=status)
