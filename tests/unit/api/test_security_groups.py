"""The one security group that there is."""

from typing import Any

from sev_agent.api.server_bodies import DEFAULT_GROUP
from tests.compute_api import InProcessApi
from tests.unit.api.requests import make_flavor, make_image, server


async def test_every_server_is_in_the_default_group(api: InProcessApi) -> None:
    """Creation and server tell its name, and the list of groups the whole of it: the same for all of a project."""
    await make_flavor(api)
    image = make_image(api)
    groups = []
    bodies: list[dict[str, Any]] = [{}, {"security_groups": [{"name": DEFAULT_GROUP}]}]
    for fields in bodies:
        _, made = await api.ask("POST", "/servers", json=server(image, **fields))
        assert made["server"]["security_groups"] == [{"name": DEFAULT_GROUP}]
        path = f"/servers/{made['server']['id']}"
        _, shown = await api.ask("GET", path)
        assert shown["server"]["security_groups"] == [{"name": DEFAULT_GROUP}]
        _, listed = await api.ask("GET", f"{path}/os-security-groups")
        groups += listed["security_groups"]
    first, second = groups
    assert first == second
    assert set(first) == {"id", "name", "description", "rules", "tenant_id"}
    assert (first["name"], first["rules"], first["tenant_id"]) == (DEFAULT_GROUP, [], "red")
