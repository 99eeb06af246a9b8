"""The compute API (Nova's, or this project's own) as a client: its flavors."""

import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final
from urllib.parse import quote

import aiohttp
from pydantic import BaseModel, Field

from sev_agent.config import ServiceSection
from sev_agent.errors import Conflict, NotFound, SevAgentError
from sev_agent.openstack.client import ServiceClient
from sev_agent.openstack.exchange import DictOf, ListOf, RequestObserver, Response, ignore_request
from sev_agent.openstack.identity import Identity

_FLAVORS: Final = "/v2.1/flavors"
_PAGE: Final = 1000
_MAX_PAGES: Final = 100


class FlavorNotFound(NotFound):
    """The compute API has no such flavor, or does not show it to us."""

    code = "flavor.not_found"


class FlavorExists(Conflict):
    """A flavor of this name or identifier is there already."""

    code = "flavor.exists"


class FlavorAmbiguous(Conflict):
    """Several flavors have the name that was asked for."""

    code = "flavor.ambiguous"


@dataclass(frozen=True, slots=True, kw_only=True)
class Flavor:
    """A flavor as the compute API describes it: ``ram`` in MiB, ``disk`` in GiB."""

    id: str
    name: str
    vcpus: int
    ram: int
    disk: int
    extra_specs: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


class _Flavor(BaseModel):
    id: str
    name: str
    vcpus: int
    ram: int
    disk: int


class _One(BaseModel):
    flavor: _Flavor


class _Many(BaseModel):
    flavors: ListOf[_Flavor]


class _ExtraSpecs(BaseModel):
    extra_specs: DictOf[str, str] = Field(default_factory=dict)


class ComputeApi:
    """The compute service, API version 2.1."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        identity: Identity,
        settings: ServiceSection,
        *,
        on_request: RequestObserver = ignore_request,
    ) -> None:
        self._client = ServiceClient(
            session, identity, name="compute", service_type="compute", settings=settings, on_request=on_request
        )

    async def find_flavor(self, name_or_id: str) -> Flavor:
        """The flavor of this identifier, or else the one of this name, with its extra specs.

        Raises ``FlavorNotFound``, ``FlavorAmbiguous``.
        """
        found = await self._by_id(name_or_id) or await self._by_name(name_or_id)
        response = await self._client.request("GET", f"{_path(found.id)}/os-extra_specs", accepted={200, 404})
        if response.status == 404:
            raise _not_found(name_or_id)
        return _flavor(found, response.parse(_ExtraSpecs).extra_specs)

    async def create_flavor(
        self, name: str, *, vcpus: int, ram: int, disk: int, is_public: bool, extra_specs: Mapping[str, str]
    ) -> Flavor:
        """A new flavor: ``ram`` in MiB, ``disk`` in GiB. Raises ``FlavorExists``.

        A flavor whose extra specs cannot be set is removed again: without them it would give unencrypted servers.
        """
        body = {"name": name, "vcpus": vcpus, "ram": ram, "disk": disk, "os-flavor-access:is_public": is_public}
        response = await self._client.request("POST", _FLAVORS, json={"flavor": body}, accepted={200, 409})
        if response.status == 409:
            raise FlavorExists(
                f"there is a flavor {name!r} already: {_said(response)}",
                field="flavor",
                remedy=f"use another name, or set its property: openstack flavor set {name} --property ...",
            )
        made = response.parse(_One).flavor
        try:
            path = f"{_path(made.id)}/os-extra_specs"
            answer = await self._client.request("POST", path, json={"extra_specs": dict(extra_specs)}, accepted={200})
            return _flavor(made, answer.parse(_ExtraSpecs).extra_specs)
        except BaseException:
            with contextlib.suppress(SevAgentError):
                await self.delete_flavor(made.id)
            raise

    async def delete_flavor(self, flavor_id: str) -> None:
        """Remove a flavor; one that is gone already is a success."""
        await self._client.request("DELETE", _path(flavor_id), accepted={202, 204, 404})

    async def _by_id(self, flavor_id: str) -> _Flavor | None:
        response = await self._client.request("GET", _path(flavor_id), accepted={200, 400, 404})
        return response.parse(_One).flavor if response.status == 200 else None

    async def _by_name(self, name: str) -> _Flavor:
        named = [flavor async for flavor in self._all() if flavor.name == name]
        match named:
            case [only]:
                return only
            case []:
                raise _not_found(name)
            case several:
                ids = ", ".join(flavor.id for flavor in several)
                raise FlavorAmbiguous(
                    f"several flavors are named {name!r}: {ids}", field="flavor", remedy="name one of them by its ID"
                )

    async def _all(self) -> AsyncIterator[_Flavor]:
        # "None", spelled so, means public and private ones; the API ignores it for who may not see all.
        params = {"is_public": "None", "limit": str(_PAGE)}
        for _ in range(_MAX_PAGES):
            response = await self._client.request("GET", f"{_FLAVORS}/detail", params=params, accepted={200})
            page = response.parse(_Many).flavors
            for flavor in page:
                yield flavor
            if len(page) < _PAGE:
                return
            params = {**params, "marker": page[-1].id}


def _path(flavor_id: str) -> str:
    return f"{_FLAVORS}/{quote(flavor_id, safe='')}"


def _flavor(wire: _Flavor, extra_specs: Mapping[str, str]) -> Flavor:
    return Flavor(**wire.model_dump(), extra_specs=MappingProxyType(dict(extra_specs)))


def _said(response: Response) -> str:
    """The message of the compute API's error body, ``{"conflictingRequest": {"code": 409, "message": ...}}``."""
    try:
        (fault,) = json.loads(response.body).values()
        return str(fault["message"])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return response.excerpt


def _not_found(name_or_id: str) -> FlavorNotFound:
    return FlavorNotFound(
        f"the compute API has no flavor {name_or_id!r}, or does not show it to this user",
        field="flavor",
        remedy="see 'openstack flavor list'",
    )
