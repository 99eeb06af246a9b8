"""The HTTP side of the API: from a request to its route, and from what came of it to an answer."""

import json
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any
from uuid import uuid4

import structlog
from aiohttp import web

from sev_agent.api import openapi, versions
from sev_agent.api.body import check_text, parse, read_json
from sev_agent.api.caller import Authenticator, Caller
from sev_agent.api.faults import BadRequest, ItemNotFound, fault_response, status_of, text_for_tenants
from sev_agent.api.metrics import ApiMetrics
from sev_agent.api.microversion import HEADER, LEGACY_HEADER, MINIMUM, Microversion, answer_headers, negotiate
from sev_agent.api.routes import Answer, Call, Route
from sev_agent.config import ApiSection
from sev_agent.errors import SevAgentError
from sev_agent.openstack.client import global_request_id

log = structlog.stdlib.get_logger(__name__)

PREFIX = "/v2.1"
_PROJECT = "project_id"
_PROJECT_PATTERN = "{project_id:[0-9a-fA-F]{32}|[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}}"
_REQUEST_ID = re.compile(r"req-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_ID_HEADER = "x-openstack-request-id"
_GLOBAL_ID_HEADER = "X-OpenStack-Request-ID"
_OPEN_PATHS = frozenset({"/", PREFIX, f"{PREFIX}/", openapi.PATH})
_RETRY_SECONDS = "5"
_UNKNOWN = "unknown"

# What is learnt of a request on its way, for those who come later.
_REQUEST_ID_KEY = web.RequestKey("request_id", str)
_OPERATION = web.RequestKey("operation", str)
_VERSION = web.RequestKey("version", Microversion)
_CALLER = web.RequestKey("caller", Caller)

dumps = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode


class ComputeApi:
    """The web application of ``routes``; ``app`` is it."""

    def __init__(
        self, routes: Iterable[Route], *, authenticator: Authenticator, settings: ApiSection, metrics: ApiMetrics
    ) -> None:
        self._authenticator = authenticator
        self._settings = settings
        self._metrics = metrics
        self._max_bytes = settings.max_body_kb * 1024
        self.app = web.Application(client_max_size=self._max_bytes, middlewares=[self._around])
        self.app.router.add_get("/", self._discover_all)
        for path in (PREFIX, f"{PREFIX}/"):
            self.app.router.add_get(path, self._discover_one)
        self.app.router.add_get(openapi.PATH, self._describe)
        self._routes = tuple(routes)
        self._document = ""
        for route in self._routes:
            handler = self._handler(route)
            for prefix in (PREFIX, f"{PREFIX}/{_PROJECT_PATTERN}"):
                self.app.router.add_route(route.method, f"{prefix}{route.path}", handler, name=None)

    @web.middleware
    async def _around(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Everything that is the same for each request: its id, its faults, its headers, its count."""
        started = time.perf_counter()
        request_id = f"req-{uuid4()}"
        request[_REQUEST_ID_KEY] = request_id
        asked = request.headers.get(_GLOBAL_ID_HEADER, "")
        with structlog.contextvars.bound_contextvars(
            request_id=request_id, **({"global_request_id": asked} if _REQUEST_ID.fullmatch(asked) else {})
        ):
            reset = global_request_id.set(request_id)
            try:
                response = await self._guarded(request, handler)
            finally:
                global_request_id.reset(reset)
            self._dress(request, response, request_id)
            name = request.get(_OPERATION, _UNKNOWN)
            seconds = time.perf_counter() - started
            self._metrics.requests.labels(request.method if name != _UNKNOWN else "", name, response.status).observe(
                seconds
            )
            log.info("api.request", method=request.method, path=request.path[:200], status=response.status)
        return response

    async def _guarded(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        try:
            if request.path in _OPEN_PATHS:
                return await handler(request)
            request[_VERSION] = negotiate(request.headers)
            request[_CALLER] = await self._authenticator.authenticate(request.headers)
            return await handler(request)
        except web.HTTPException as error:
            return _routing_fault(error)
        except SevAgentError as error:
            return self._fault(request, error)
        except Exception:
            log.exception("api.failed", method=request.method, path=request.path[:200])
            return fault_response(500, "Unexpected API Error. The request id leads to it in the log of this service.")

    def _fault(self, request: web.Request, error: SevAgentError) -> web.Response:
        status = status_of(error)
        if status >= 500:
            log.warning("api.fault", status=status, code=error.code, error=str(error), path=request.path[:200])
        caller = request.get(_CALLER)
        is_for_all = status != 503 or (caller is not None and caller.is_admin)
        response = fault_response(status, str(error) if is_for_all else text_for_tenants(error))
        if status == 401:
            response.headers["WWW-Authenticate"] = "Keystone"
        if status == 503:
            response.headers["Retry-After"] = _RETRY_SECONDS
        return response

    def _dress(self, request: web.Request, response: web.StreamResponse, request_id: str) -> None:
        headers = response.headers
        headers[_ID_HEADER] = request_id
        headers["x-compute-request-id"] = request_id
        version = request.get(_VERSION)
        if request.path not in _OPEN_PATHS:
            headers.update(answer_headers(version) if version else {"Vary": f"{HEADER}, {LEGACY_HEADER}"})

    def _handler(self, route: Route) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def handle(request: web.Request) -> web.StreamResponse:
            request[_OPERATION] = route.name
            caller, version = request[_CALLER], request[_VERSION]
            if version < route.since or (route.until is not None and version > route.until):
                raise ItemNotFound(f"{route.method} {route.path} is not part of microversion {version}")
            parameters = _parameters(request, caller)
            caller.require(route.role)
            body = None
            if route.body is not None:
                value = await read_json(request, self._max_bytes)
                body = parse(route.body, {} if value is None else value, "body")
            query = None if route.query is None else parse(route.query, _query(request), "query")
            made = await route.handler(
                Call(
                    caller=caller,
                    version=version,
                    request_id=request[_REQUEST_ID_KEY],
                    base=f"{self._base(request)}{PREFIX}",
                    parameters=parameters,
                    body=body,
                    query=query,
                )
            )
            return _response(route, made)

        return handle

    def _base(self, request: web.Request) -> str:
        """Where clients reach this service: as configured, or as this request came."""
        if self._settings.public_url is not None:
            return self._settings.public_url.rstrip("/").removesuffix(PREFIX)
        return f"{request.scheme}://{request.host}"

    async def _discover_all(self, request: web.Request) -> web.StreamResponse:
        request[_OPERATION] = "versions"
        return web.json_response(versions.every(self._base(request)), status=200)

    async def _discover_one(self, request: web.Request) -> web.StreamResponse:
        request[_OPERATION] = "version"
        return web.json_response(versions.one(self._base(request)), headers=answer_headers(MINIMUM))

    async def _describe(self, request: web.Request) -> web.StreamResponse:
        request[_OPERATION] = "openapi"
        # Made when it is first wanted: few processes are ever asked.
        self._document = self._document or dumps(openapi.document(self._routes, prefix=PREFIX))
        return web.json_response(text=self._document)


def _response(route: Route, made: Mapping[str, Any] | Answer | None) -> web.Response:
    answer = made if isinstance(made, Answer) else Answer(body=made)
    status = answer.status or route.status
    if answer.body is None:
        return web.Response(status=status, headers=answer.headers)
    return web.Response(
        status=status, headers=answer.headers, text=dumps(answer.body), content_type="application/json", charset="utf-8"
    )


def _parameters(request: web.Request, caller: Caller) -> dict[str, str]:
    parameters = dict(request.match_info)
    project = parameters.pop(_PROJECT, caller.project_id)
    if project.replace("-", "").lower() != caller.project_id.replace("-", "").lower():
        raise BadRequest(
            f"Malformed request URL: URL's project_id '{project}' doesn't match Context's project_id"
            f" '{caller.project_id}'"
        )
    for name, value in parameters.items():
        check_text(value, name)
    return parameters


def _query(request: web.Request) -> dict[str, Any]:
    """Each parameter's last value; those that may be repeated as lists."""
    found: dict[str, Any] = {}
    for name, value in request.query.items():
        check_text(name, "query")
        check_text(value, f"query.{name[:100]}")
        found[name] = value
    for name in ("sort_key", "sort_dir"):
        if name in found:
            found[name] = request.query.getall(name)
    return found


def _routing_fault(error: web.HTTPException) -> web.Response:
    texts = {404: "The resource could not be found.", 405: "The method is not allowed for this resource."}
    response = fault_response(error.status, texts.get(error.status, error.reason))
    if "Allow" in error.headers:
        response.headers["Allow"] = error.headers["Allow"]
    return response
