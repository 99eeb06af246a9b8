"""What the API's tests ask for, and how a refusal must look."""

from typing import Any, Final
from uuid import uuid4

from sev_agent.sev import tags
from tests.compute_api import InProcessApi

FAULTS: Final = {
    400: "badRequest",
    401: "unauthorized",
    403: "forbidden",
    404: "itemNotFound",
    405: "badMethod",
    406: "computeFault",
    409: "conflictingRequest",
    413: "overLimit",
    415: "badMediaType",
    503: "serviceUnavailable",
}


async def make_flavor(api: InProcessApi, flavor_id: str = "small", **extra_specs: str) -> str:
    """A flavor of 512 MiB and 1 GiB; for encrypted servers unless ``extra_specs`` (``__`` for a colon) say else."""
    flavor = {"id": flavor_id, "name": flavor_id, "ram": 512, "vcpus": 1, "disk": 1}
    assert (await api.ask("POST", "/flavors", json={"flavor": flavor}))[0] == 200
    specs = {name.replace("__", ":"): value for name, value in extra_specs.items()} or {"hw:mem_encryption": "true"}
    path = f"/flavors/{flavor_id}/os-extra_specs"
    assert (await api.ask("POST", path, json={"extra_specs": specs}))[0] == 200
    return flavor_id


def make_image(api: InProcessApi, **fields: Any) -> str:
    """An image, tagged as the method asks apart from ``fields``; ``None`` leaves one out."""
    wanted = {**tags.IMAGE, **fields}
    return api.cloud.add_image("debian", **{name: value for name, value in wanted.items() if value is not None})


def server(image: str, flavor: str = "small", **fields: Any) -> dict[str, Any]:
    """A body that creates a server."""
    return {"server": {"name": "web", "flavorRef": flavor, "imageRef": image, **fields}}


def message(status: int, body: Any) -> str:
    """The text of a refusal, whose form must be the compute API's."""
    assert body == {FAULTS[status]: {"code": status, "message": body[FAULTS[status]]["message"]}}
    text = body[FAULTS[status]]["message"]
    assert isinstance(text, str)
    assert text
    return text


async def nothing_is_there(api: InProcessApi) -> bool:
    """Whether no server was written down, of any project, and none asked of a scheduler."""
    status, listed = await api.ask("GET", "/servers", params={"all_tenants": "1"})
    assert status == 200
    return listed == {"servers": []} and not api.sent.casts


def unknown() -> str:
    return str(uuid4())
