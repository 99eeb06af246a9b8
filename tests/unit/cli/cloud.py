"""A Glance and a compute API on loopback, in memory, for the commands that speak to them."""

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

from aiohttp import web


class ScriptedCloud:
    """Both services at one address. ``patched`` are the JSON patches that Glance was sent."""

    def __init__(self) -> None:
        self.images: dict[str, dict[str, Any]] = {}
        self.flavors: dict[str, dict[str, Any]] = {}
        self.extra_specs: dict[str, dict[str, str]] = {}
        self.patched: list[list[dict[str, str]]] = []
        self.refuse_extra_specs = False
        self.refuse_user: int | None = None
        self.url = ""

    def add_image(self, name: str, **fields: Any) -> str:
        image_id = str(uuid4())
        self.images[image_id] = {
            "id": image_id,
            "name": name,
            "status": "active",
            "disk_format": "qcow2",
            "container_format": "bare",
            **fields,
        }
        return image_id

    def add_flavor(self, name: str, *, ram: int = 512, disk: int = 1, **extra_specs: str) -> str:
        flavor_id = str(uuid4())
        self.flavors[flavor_id] = {"id": flavor_id, "name": name, "vcpus": 1, "ram": ram, "disk": disk}
        self.extra_specs[flavor_id] = {key.replace("__", ":"): value for key, value in extra_specs.items()}
        return flavor_id

    @property
    def environment(self) -> dict[str, str]:
        return {"OS_AUTH_TYPE": "none", "COLUMNS": "200", "NO_COLOR": "1"}

    def application(self) -> web.Application:
        application = web.Application()
        application.add_routes(
            [
                web.get("/v2/images", self._list_images),
                web.get("/v2/images/{id}", self._show_image),
                web.patch("/v2/images/{id}", self._patch_image),
                web.get("/v2.1/flavors/detail", self._list_flavors),
                web.post("/v2.1/flavors", self._create_flavor),
                web.get("/v2.1/flavors/{id}", self._show_flavor),
                web.delete("/v2.1/flavors/{id}", self._delete_flavor),
                web.get("/v2.1/flavors/{id}/os-extra_specs", self._show_extra_specs),
                web.post("/v2.1/flavors/{id}/os-extra_specs", self._set_extra_specs),
            ]
        )
        return application

    async def _list_images(self, _: web.Request) -> web.Response:
        return web.json_response({"images": list(self.images.values())})

    async def _show_image(self, request: web.Request) -> web.Response:
        return _one(self.images, request)

    async def _patch_image(self, request: web.Request) -> web.Response:
        image = self.images[request.match_info["id"]]
        changes = json.loads(await request.read())
        self.patched.append(changes)
        for change in changes:
            name = change["path"].removeprefix("/")
            if change["op"] == "remove":
                del image[name]
            else:
                image[name] = change["value"]
        return web.json_response(image)

    async def _list_flavors(self, request: web.Request) -> web.Response:
        limit = int(request.query["limit"])
        ids = list(self.flavors)
        start = ids.index(request.query["marker"]) + 1 if "marker" in request.query else 0
        return web.json_response({"flavors": [self.flavors[key] for key in ids[start : start + limit]]})

    async def _show_flavor(self, request: web.Request) -> web.Response:
        return _one(self.flavors, request, "flavor")

    async def _create_flavor(self, request: web.Request) -> web.Response:
        if self.refuse_user is not None:
            return web.json_response({"forbidden": {"message": "it is not for you"}}, status=self.refuse_user)
        asked = (await request.json())["flavor"]
        if any(flavor["name"] == asked["name"] for flavor in self.flavors.values()):
            message = f"Flavor with name {asked['name']} already exists."
            return web.json_response({"conflictingRequest": {"code": 409, "message": message}}, status=409)
        flavor_id = str(uuid4())
        self.flavors[flavor_id] = {"id": flavor_id, **asked}
        return web.json_response({"flavor": self.flavors[flavor_id]})

    async def _delete_flavor(self, request: web.Request) -> web.Response:
        del self.flavors[request.match_info["id"]]
        return web.Response(status=202)

    async def _show_extra_specs(self, request: web.Request) -> web.Response:
        return web.json_response({"extra_specs": self.extra_specs.get(request.match_info["id"], {})})

    async def _set_extra_specs(self, request: web.Request) -> web.Response:
        if self.refuse_extra_specs:
            return web.json_response({"badRequest": {"code": 400, "message": "no"}}, status=400)
        body = await request.json()
        self.extra_specs[request.match_info["id"]] = body["extra_specs"]
        return web.json_response(body)


def _one(many: dict[str, dict[str, Any]], request: web.Request, wrapped: str | None = None) -> web.Response:
    found = many.get(request.match_info["id"])
    if found is None:
        return web.json_response({"itemNotFound": {"code": 404, "message": "none"}}, status=404)
    return web.json_response({wrapped: found} if wrapped else found)


@contextmanager
def serving(cloud: ScriptedCloud) -> Iterator[ScriptedCloud]:
    """In a thread of its own: a command runs its own loop."""
    loop = asyncio.new_event_loop()
    runner = web.AppRunner(cloud.application())

    async def start() -> None:
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()

    loop.run_until_complete(start())
    cloud.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    thread = threading.Thread(target=loop.run_forever, name="scripted-cloud")
    thread.start()
    try:
        yield cloud
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.run_until_complete(runner.cleanup())
        loop.close()
