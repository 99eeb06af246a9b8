"""Images in Glance: what they are, and their bytes, in streams."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final
from uuid import UUID

import aiohttp
from pydantic import BaseModel, ConfigDict, NonNegativeInt

from sev_agent.config import ServiceSection
from sev_agent.errors import Conflict, NotFound
from sev_agent.openstack.client import ServiceClient
from sev_agent.openstack.exchange import ListOf, RequestObserver, Response, ServiceUnavailable, ignore_request
from sev_agent.openstack.identity import Identity

CHUNK: Final = 1024 * 1024
"""Bytes of a piece of a download."""

_FIELD = "instance.image.id"
_PATCH = "application/openstack-images-v2.1-json-patch"
_IMAGES = "/v2/images"


class ImageNotFound(NotFound):
    """Glance has no such image, or does not show it to us."""

    code = "image.not_found"


class ImageAmbiguous(Conflict):
    """Several images have the name that was asked for."""

    code = "image.ambiguous"


class ImageWithoutData(Conflict):
    """The image exists, but nothing was uploaded into it yet, or its data is gone."""

    code = "image.no_data"


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """An image as Glance describes it: sizes in bytes, ``min_disk`` in GiB, ``min_ram`` in MiB.

    ``properties`` are all the string properties that are not Glance's own, ``hw_*`` among them.
    """

    id: UUID
    name: str
    status: str
    visibility: str
    disk_format: str | None
    container_format: str | None
    size: int | None
    virtual_size: int | None
    min_disk: int
    min_ram: int
    checksum: str | None
    os_hash_algo: str | None
    os_hash_value: str | None
    os_hidden: bool
    owner: str | None
    properties: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


class _Image(BaseModel):
    model_config = ConfigDict(extra="allow")

    id: UUID
    name: str | None = None
    status: str
    visibility: str = ""
    disk_format: str | None = None
    container_format: str | None = None
    size: NonNegativeInt | None = None
    virtual_size: NonNegativeInt | None = None
    min_disk: NonNegativeInt = 0
    min_ram: NonNegativeInt = 0
    checksum: str | None = None
    os_hash_algo: str | None = None
    os_hash_value: str | None = None
    os_hidden: bool = False
    owner: str | None = None


class _Images(BaseModel):
    images: ListOf[_Image]


_NAMED_AT_MOST = 20
"""Images of one name that are looked at: enough to say that it is ambiguous."""


_GLANCES_OWN = frozenset({"created_at", "updated_at", "direct_url", "self", "file", "schema", "stores"})
"""String fields of an answer that say nothing about the guest."""


class Glance:
    """The image service, API version 2."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        identity: Identity,
        settings: ServiceSection,
        *,
        on_request: RequestObserver = ignore_request,
    ) -> None:
        self._client = ServiceClient(
            session, identity, name="glance", service_type="image", settings=settings, on_request=on_request
        )

    async def check(self) -> None:
        """Have Glance look into its database. Raises what any request raises."""
        answer = await self._client.request("GET", _IMAGES, params={"limit": "1"}, accepted={200})
        answer.parse(_Images)

    async def get_image(self, image_id: UUID) -> Image:
        """Raises ``ImageNotFound``."""
        response = await self._client.request("GET", f"{_IMAGES}/{image_id}", accepted={200, 404})
        if response.status == 404:
            raise _not_found(image_id)
        image = _parse(response)
        if image.id != image_id:
            raise response.bad(f"answered with image {image.id} instead of {image_id}")
        return image

    async def find_image(self, name_or_id: str) -> Image:
        """The image of this identifier, or else the one of this name. Raises ``ImageNotFound``, ``ImageAmbiguous``."""
        if (image_id := _as_uuid(name_or_id)) is not None:
            with contextlib.suppress(ImageNotFound):
                return await self.get_image(image_id)
        # Glance would read a name that begins so as a list of names.
        wanted = f'in:"{name_or_id}"' if name_or_id.startswith("in:") else name_or_id
        params = {"name": wanted, "limit": str(_NAMED_AT_MOST)}
        response = await self._client.request("GET", _IMAGES, params=params, accepted={200})
        named = [each for each in response.parse(_Images).images if each.name == name_or_id]
        match named:
            case [only]:
                return _image(only)
            case []:
                raise ImageNotFound(
                    f"Glance has no image {name_or_id!r}, or does not show it to this user",
                    field="image",
                    remedy="see 'openstack image list'",
                )
            case several:
                ids = ", ".join(str(each.id) for each in several)
                raise ImageAmbiguous(
                    f"several images are named {name_or_id!r}: {ids}",
                    field="image",
                    remedy="name one of them by its ID",
                )

    @asynccontextmanager
    async def download(
        self, image: Image, *, total_timeout: float, idle_timeout: float
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """The image's bytes in pieces of ``CHUNK``; the times are seconds, in all and without a byte from Glance.

        Ends only after ``image.size`` bytes, where that is known. Raises ``ImageNotFound``, ``ImageWithoutData``,
        ``BadAnswer`` (another length than the image's), ``ServiceUnavailable`` (cut short, too slow). What is in the
        bytes is not looked at: compare with ``os_hash_value``.
        """
        opened = self._client.open(
            "GET",
            f"{_IMAGES}/{image.id}/file",
            limits=aiohttp.ClientTimeout(total=total_timeout, sock_connect=idle_timeout, sock_read=idle_timeout),
            accepted={200, 204, 404},
            headers={"Accept": "application/octet-stream", "Accept-Encoding": "identity"},
            body=lambda: {"read_bufsize": CHUNK},
        )
        async with opened as answer:
            if answer.status == 404:
                raise _not_found(image.id)
            if answer.status == 204:
                raise _without_data(image.id)
            length = answer.content_length
            if length is not None and image.size is not None and length != image.size:
                raise self._client.bad(answer, f"sends {length} bytes of an image that has {image.size}")
            yield self._checked(answer, image)

    async def _checked(self, answer: aiohttp.ClientResponse, image: Image) -> AsyncIterator[bytes]:
        received = 0
        async for chunk in self._client.chunks(answer, CHUNK):
            received += len(chunk)
            if image.size is not None and received > image.size:
                raise self._client.bad(answer, f"sends more than the {image.size} bytes that the image has")
            yield chunk
        if image.size is not None and received != image.size:
            raise self._client.bad(answer, f"ended after {received} of the image's {image.size} bytes")

    async def create_image(
        self,
        name: str,
        *,
        disk_format: str,
        container_format: str = "bare",
        visibility: str = "private",
        min_disk: int = 0,
        min_ram: int = 0,
        properties: Mapping[str, str] | None = None,
    ) -> Image:
        """A new image without data: ``min_disk`` in GiB, ``min_ram`` in MiB."""
        body: dict[str, Any] = {
            **(properties or {}),
            "name": name,
            "disk_format": disk_format,
            "container_format": container_format,
            "visibility": visibility,
            "min_disk": min_disk,
            "min_ram": min_ram,
        }
        return _parse(await self._client.request("POST", _IMAGES, json=body, accepted={201}))

    async def upload(self, image_id: UUID, path: Path, *, total_timeout: float) -> None:
        """Send the file at ``path`` as the image's data, in a stream, within ``total_timeout`` seconds.

        Raises ``OSError`` when the file cannot be read, ``ImageNotFound``, ``ServiceUnavailable``, ``RequestRefused``.
        """
        faults: list[OSError] = []
        size = (await asyncio.to_thread(path.stat)).st_size
        opened = self._client.open(
            "PUT",
            f"{_IMAGES}/{image_id}/file",
            limits=aiohttp.ClientTimeout(total=total_timeout),
            accepted={204, 404},
            headers={"Content-Type": "application/octet-stream", "Content-Length": str(size)},
            body=lambda: {"data": _pieces(path, faults)},
        )
        try:
            async with opened as answer:
                if answer.status == 404:
                    raise _not_found(image_id)
        except ServiceUnavailable:
            # aiohttp takes an error of the body for one of the connection.
            if faults:
                raise faults[0] from None
            raise

    async def set_properties(self, image_id: UUID, properties: Mapping[str, str | None]) -> Image:
        """Add or replace the given properties, and leave all others; ``None`` removes one, which must be there.

        Raises ``ImageNotFound``.
        """
        changes = [_change(name, value) for name, value in properties.items()]
        response = await self._client.request(
            "PATCH",
            f"{_IMAGES}/{image_id}",
            json=changes,
            headers={"Content-Type": _PATCH},
            accepted={200, 404},
        )
        if response.status == 404:
            raise _not_found(image_id)
        return _parse(response)

    async def delete_image(self, image_id: UUID) -> None:
        """Remove the image and its data; one that is gone already is a success."""
        await self._client.request("DELETE", f"{_IMAGES}/{image_id}", accepted={204, 404})


async def _pieces(path: Path, faults: list[OSError]) -> AsyncIterator[bytes]:
    try:
        file = await asyncio.to_thread(path.open, "rb")
        with file:
            while piece := await asyncio.to_thread(file.read, CHUNK):
                yield piece
    except OSError as error:
        faults.append(error)
        raise


def _change(name: str, value: str | None) -> Mapping[str, str]:
    # In version 2.1 of the patch format "add" replaces what is there; in 2.0 it is refused.
    path = _pointer(name)
    return {"op": "remove", "path": path} if value is None else {"op": "add", "path": path, "value": value}


def _as_uuid(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None


def _pointer(name: str) -> str:
    return "/" + name.replace("~", "~0").replace("/", "~1")


def _parse(response: Response) -> Image:
    return _image(response.parse(_Image))


def _image(wire: _Image) -> Image:
    extra = wire.model_extra or {}
    properties = {name: value for name, value in extra.items() if isinstance(value, str) and name not in _GLANCES_OWN}
    known = wire.model_dump(include=set(_Image.model_fields))
    return Image(**{**known, "name": wire.name or ""}, properties=MappingProxyType(properties))


def _not_found(image_id: UUID) -> ImageNotFound:
    return ImageNotFound(
        f"Glance has no image {image_id}, or does not show it to the agent's user",
        field=_FIELD,
        remedy="check the identifier, and the image's visibility",
    )


def _without_data(image_id: UUID) -> ImageWithoutData:
    return ImageWithoutData(f"image {image_id} has no data", field=_FIELD, remedy="upload its data first")
