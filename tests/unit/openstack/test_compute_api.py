"""The compute API's flavors, against a server that answers as it is told."""

from typing import Any

import aiohttp
import pytest
from aiohttp import web

from sev_agent.config import ServiceSection
from sev_agent.openstack.compute_api import ComputeApi, Flavor, FlavorAmbiguous, FlavorExists, FlavorNotFound
from sev_agent.openstack.exchange import BadAnswer, ServiceUnavailable
from sev_agent.openstack.identity import NoIdentity
from tests.unit.openstack.conftest import Handler, Serve

SPECS = {"hw:mem_encryption": "true"}


def flavor(number: int, name: str | None = None) -> dict[str, Any]:
    return {"id": f"id-{number}", "name": name or f"name-{number}", "vcpus": 1, "ram": 512, "disk": 1, "swap": ""}


async def compute(session: aiohttp.ClientSession, serve: Serve, handler: Handler) -> ComputeApi:
    return ComputeApi(session, NoIdentity(), ServiceSection(endpoint=f"{await serve(handler)}/v2.1/", timeout=5))


def having(flavors: list[dict[str, Any]], asked: list[str] | None = None) -> Handler:
    """An API with these flavors, all with the same extra specs; ``asked`` hears what it was asked."""

    async def handle(request: web.Request) -> web.Response:
        if asked is not None:
            asked.append(str(request.rel_url))
        match request.path.removeprefix("/v2.1/flavors").split("/"):
            case ["", "detail"]:
                assert request.query["is_public"] == "None"
                ids = [each["id"] for each in flavors]
                start = ids.index(request.query["marker"]) + 1 if "marker" in request.query else 0
                return web.json_response({"flavors": flavors[start : start + int(request.query["limit"])]})
            case ["", _, "os-extra_specs"]:
                return web.json_response({"extra_specs": SPECS})
            case ["", flavor_id] if found := [each for each in flavors if each["id"] == flavor_id]:
                return web.json_response({"flavor": found[0]})
        return web.json_response({"itemNotFound": {"code": 404, "message": "none"}}, status=404)

    return handle


async def test_by_id_and_name(session: aiohttp.ClientSession, serve: Serve) -> None:
    """A flavor is found by its identifier first, then by its name, with its extra specs."""
    client = await compute(session, serve, having([flavor(1), flavor(2, "id-1")]))
    assert await client.find_flavor("id-1") == Flavor(
        id="id-1", name="name-1", vcpus=1, ram=512, disk=1, extra_specs=SPECS
    )
    assert (await client.find_flavor("name-1")).id == "id-1"


async def test_on_a_later_page(session: aiohttp.ClientSession, serve: Serve) -> None:
    """A name is looked for on every page, with no page too many."""
    asked: list[str] = []
    client = await compute(session, serve, having([flavor(number) for number in range(1500)], asked))
    assert (await client.find_flavor("name-1499")).id == "id-1499"
    assert len([each for each in asked if "/detail" in each]) == 2


async def test_ambiguous(session: aiohttp.ClientSession, serve: Serve) -> None:
    """A name that several flavors have is an error that names them."""
    client = await compute(session, serve, having([flavor(1, "same"), flavor(2, "same")]))
    with pytest.raises(FlavorAmbiguous, match="id-1, id-2"):
        await client.find_flavor("same")


@pytest.mark.parametrize("name", ["nothing", "a/b", "..", "größe", "x" * 3000])
async def test_missing(session: aiohttp.ClientSession, serve: Serve, name: str) -> None:
    """A flavor that is not there is named, whatever its name looks like; it never becomes another path."""
    client = await compute(session, serve, having([flavor(1)]))
    with pytest.raises(FlavorNotFound) as caught:
        await client.find_flavor(name)
    assert repr(name) in caught.value.message


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ('{"conflictingRequest": {"code": 409, "message": "taken"}}', "already: taken"),
        ("<html>taken</html>", "already: <html>taken"),
        ("[]", r"already: \[\]"),
    ],
)
async def test_name_is_taken(session: aiohttp.ClientSession, serve: Serve, body: str, text: str) -> None:
    """A conflict is told with what the API says, in whatever form it says it."""

    async def handle(_: web.Request) -> web.Response:
        return web.Response(status=409, text=body)

    client = await compute(session, serve, handle)
    with pytest.raises(FlavorExists, match=text):
        await client.create_flavor("own", vcpus=1, ram=64, disk=1, is_public=True, extra_specs=SPECS)


async def test_half_a_flavor(session: aiohttp.ClientSession, serve: Serve) -> None:
    """A flavor whose extra specs cannot be set, for an outage too, is removed again."""
    deleted = []

    async def handle(request: web.Request) -> web.Response:
        if request.path.endswith("os-extra_specs"):
            return web.Response(status=503)
        if request.method == "DELETE":
            deleted.append(request.path)
            return web.Response(status=202)
        return web.json_response({"flavor": flavor(1)})

    client = await compute(session, serve, handle)
    with pytest.raises(ServiceUnavailable):
        await client.create_flavor("own", vcpus=1, ram=64, disk=1, is_public=True, extra_specs=SPECS)
    assert deleted == ["/v2.1/flavors/id-1"]


async def test_nonsense(session: aiohttp.ClientSession, serve: Serve) -> None:
    """An answer in another form is told with the path in it."""

    async def handle(_: web.Request) -> web.Response:
        return web.json_response({"flavor": {"id": "1"}})

    client = await compute(session, serve, handle)
    with pytest.raises(BadAnswer, match=r"flavor\.name"):
        await client.find_flavor("1")
