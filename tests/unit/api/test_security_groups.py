"""The one security group that there is."""

from typing import Any

from sev_agent.api.server_bodies import DEFAULT_GROUP
from tests.compute_api import InProcessApi
from tests.unit.api.requests import make_flavor, make_image, server


async def test_every_server_is_in_the_default_group(api: InProcessApi) -> None:
    """A server shows its name, asked for or not; none is listed, for clients would look for it in Neutron."""
    await make_flavor(api)
    image = make_image(api)
    bodies: list[dict[str, Any]] = [{}, {"security_groups": [{"name": DEFAULT_GROUP}]}]
    for fields in bodies:
        _, made = await api.ask("POST", "/servers", json=server(image, **fields))
        path = f"/servers/{made['server']['id']}"
        _, shown = await api.ask("GET", path)
        assert shown["server"]["security_groups"] == [{"name": DEFAULT_GROUP}]
        assert await api.ask("GET", f"{path}/os-security-groups") == (200, {"security_groups": []})
