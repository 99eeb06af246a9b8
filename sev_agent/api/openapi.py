"""The OpenAPI document of what is offered, made from the routes themselves: what checks a request also describes it."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from sev_agent import __version__
from sev_agent.api.answers import ANSWERS, statuses_with_body
from sev_agent.api.faults import FAULT_TITLES
from sev_agent.api.microversion import HEADER, MAXIMUM, MINIMUM
from sev_agent.api.routes import Route

PATH: Final = "/openapi.json"

_SCHEMAS: Final = "#/components/schemas/"
_PARAMETER: Final = re.compile(r"\{(\w+)(?::(?:[^{}]|\{[^{}]*\})*)?\}")
_FAULT: Final = "Fault"
_ALWAYS: Final = (400, 401, 403, 404, 406, 503)
_WITH_BODY: Final = (413, 415)
_WHEN_WRITING: Final = (409, 429)


def document(routes: Iterable[Route], *, prefix: str) -> dict[str, Any]:
    """The document, as OpenAPI 3.1 has it; ``prefix`` begins every route's path."""
    routes = tuple(routes)
    paths: dict[str, dict[str, Any]] = {}
    schemas = _schemas(routes)
    for route in routes:
        path = prefix + _PARAMETER.sub(r"{\1}", route.path)
        paths.setdefault(path, {})[route.method.lower()] = _operation(route, schemas)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "sev-agent compute API",
            "version": __version__,
            "description": "A subset of OpenStack's compute API v2.1, for servers with encrypted memory.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "security": [{"token": []}],
        "paths": paths,
        "components": {
            "schemas": {**schemas, _FAULT: _fault_schema()},
            "securitySchemes": {"token": {"type": "apiKey", "in": "header", "name": "X-Auth-Token"}},
            "parameters": {"microversion": _microversion()},
        },
    }


def _schemas(routes: Iterable[Route]) -> dict[str, Any]:
    models: list[type[BaseModel]] = []
    for route in routes:
        described = (route.body, route.query, ANSWERS.get(route.name))
        models += [model for model in described if model is not None and model not in models]
    _, found = models_json_schema(
        [(model, "validation") for model in models], by_alias=True, ref_template=f"{_SCHEMAS}{{model}}"
    )
    schemas: dict[str, Any] = found.get("$defs", {})
    _close(schemas)
    return schemas


def _close(schema: Any) -> None:
    """Say of every object whose keys have a pattern that it has no other keys: pydantic refuses them silently."""
    match schema:
        case dict():
            if "patternProperties" in schema:
                schema.setdefault("additionalProperties", False)
            for value in schema.values():
                _close(value)
        case list():
            for value in schema:
                _close(value)


def _operation(route: Route, schemas: Mapping[str, Any]) -> dict[str, Any]:
    microversion = {"$ref": "#/components/parameters/microversion"}
    operation: dict[str, Any] = {
        "operationId": route.name,
        "summary": route.summary,
        "parameters": [
            *_path_parameters(route),
            *_query_parameters(route, schemas),
            microversion,
        ],
        "responses": _responses(route),
        "x-openstack": {
            "min_version": str(route.since),
            "max_version": None if route.until is None else str(route.until),
            "role": route.role.value,
        },
    }
    if route.body is not None:
        content = {"application/json": {"schema": {"$ref": f"{_SCHEMAS}{route.body.__name__}"}}}
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def _path_parameters(route: Route) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for name in _PARAMETER.findall(route.path)
    ]


def _query_parameters(route: Route, schemas: Mapping[str, Any]) -> list[dict[str, Any]]:
    if route.query is None:
        return []
    schema = schemas[route.query.__name__]
    required = schema.get("required", ())
    return [
        {"name": name, "in": "query", "required": name in required, "schema": _without_null(value)}
        for name, value in schema.get("properties", {}).items()
    ]


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """A parameter that is not set is left out: no value of one is null."""
    choices = [choice for choice in schema.get("anyOf", []) if choice != {"type": "null"}]
    rest = {key: value for key, value in schema.items() if key not in {"anyOf", "default"}}
    if not choices:
        return rest
    return {**rest, **choices[0]} if len(choices) == 1 else {**rest, "anyOf": choices}


def _responses(route: Route) -> dict[str, Any]:
    writes = route.method != "GET"
    statuses = (*_ALWAYS, *(_WITH_BODY if route.body is not None else ()), *(_WHEN_WRITING if writes else ()))
    fault = {"application/json": {"schema": {"$ref": f"{_SCHEMAS}{_FAULT}"}}}
    successes = {str(status): _success(route, status) for status in (route.status, *route.other_statuses)}
    return successes | {
        str(each): {"description": FAULT_TITLES.get(each, "computeFault"), "content": fault}
        for each in sorted(statuses)
    }


def _success(route: Route, status: int) -> dict[str, Any]:
    done: dict[str, Any] = {"description": "Done."}
    if status in statuses_with_body(route):
        schema = {"$ref": f"{_SCHEMAS}{ANSWERS[route.name].__name__}"}
        done["content"] = {"application/json": {"schema": schema}}
    return done


def _fault_schema() -> dict[str, Any]:
    told = {
        "type": "object",
        "required": ["code", "message"],
        "properties": {"code": {"type": "integer"}, "message": {"type": "string"}},
    }
    return {"type": "object", "minProperties": 1, "maxProperties": 1, "additionalProperties": told}


def _microversion() -> dict[str, Any]:
    return {
        "name": HEADER,
        "in": "header",
        "required": False,
        "description": f"The microversion that is asked for, from {MINIMUM} to {MAXIMUM}.",
        "schema": {"type": "string", "examples": [f"compute {MINIMUM}", f"compute {MAXIMUM}", "compute latest"]},
    }
