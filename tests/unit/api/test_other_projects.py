"""Nothing tells one project of another's servers."""

from typing import Any

import pytest

from tests.compute_api import InProcessApi
from tests.unit.api.requests import make_flavor, make_image, message, server, unknown


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "", None),
        ("PUT", "", {"server": {"name": "mine"}}),
        ("DELETE", "", None),
        ("POST", "/action", {"os-stop": None}),
        ("POST", "/action", {"os-getConsoleOutput": {}}),
        ("GET", "/metadata", None),
        ("PUT", "/metadata", {"metadata": {}}),
        ("POST", "/metadata", {"metadata": {"a": "b"}}),
        ("GET", "/metadata/a", None),
        ("PUT", "/metadata/a", {"meta": {"a": "b"}}),
        ("DELETE", "/metadata/a", None),
        ("GET", "/os-interface", None),
        ("GET", "/ips", None),
        ("GET", "/ips/user", None),
        ("GET", "/os-volume_attachments", None),
        ("GET", "/os-security-groups", None),
    ],
)
async def test_somebody_elses_server(api: InProcessApi, method: str, path: str, body: Any) -> None:
    """Another project's server answers exactly as one that was never there, whatever is asked of it."""
    await make_flavor(api)
    _, made = await api.ask("POST", "/servers", json=server(make_image(api), metadata={"a": "c"}))
    theirs, nobodys = made["server"]["id"], unknown()
    answers = []
    for server_id in (theirs, nobodys):
        status, answer = await api.ask(
            method, f"/servers/{server_id}{path}", json=body, user="bob", project="blue", roles="member"
        )
        assert status == 404
        answers.append(message(404, answer).replace(server_id, "X"))
    assert answers[0] == answers[1]
    _, shown = await api.ask("GET", f"/servers/{theirs}")
    assert (shown["server"]["name"], shown["server"]["metadata"]) == ("web", {"a": "c"})


async def test_somebody_elses_server_in_lists(api: InProcessApi) -> None:
    """No list, filter or marker tells of another project's server."""
    await make_flavor(api)
    _, made = await api.ask("POST", "/servers", json=server(make_image(api)))
    theirs = made["server"]["id"]
    bob: dict[str, Any] = {"user": "bob", "project": "blue", "roles": "member"}
    for params in ({}, {"uuid": theirs}, {"name": "web"}, {"project_id": "red"}, {"tenant_id": "red"}):
        assert await api.ask("GET", "/servers/detail", params=params, **bob) == (200, {"servers": []})
    assert (await api.ask("GET", "/servers", params={"all_tenants": "1"}, **bob))[0] == 403
    status, body = await api.ask("GET", "/servers", params={"marker": theirs}, **bob)
    assert status == 400
    assert message(400, body) == f"marker [{theirs}] not found"
