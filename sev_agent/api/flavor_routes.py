"""The routes of flavors, their extra specs and their access lists."""

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, RootModel, StringConstraints

from sev_agent.api.caller import Role
from sev_agent.api.faults import BadRequest, ItemNotFound
from sev_agent.api.flavors import Flavor, Flavors
from sev_agent.api.microversion import Microversion
from sev_agent.api.paging import PageQuery, next_links
from sev_agent.api.routes import Answer, Body, Call, Route
from sev_agent.api.tables import FlavorRow
from sev_agent.schema import Line

DESCRIPTIONS = Microversion(2, 55)
EXTRA_SPECS_SHOWN = Microversion(2, 61)

_KEY = r"^[a-zA-Z0-9\-_:. ]{1,255}$"


def number(value: Any) -> Any:
    """The compute API takes numbers as texts, too."""
    return int(value) if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 10 else value


def _is_named(value: str) -> str:
    if not value.strip() or value != value.strip():
        raise ValueError("must not be empty, nor begin or end with a space")
    return value


Number = BeforeValidator(number)
FlavorName = Annotated[Line, AfterValidator(_is_named)]
FlavorId = Annotated[
    str, StringConstraints(min_length=1, max_length=255, pattern=r"^[a-zA-Z0-9._\-][a-zA-Z0-9._ \-]*$")
]
Key = Annotated[str, StringConstraints(pattern=_KEY)]
Description = Annotated[str, Field(max_length=65535)]


class NewFlavor(Body):
    """``ram`` in MiB, ``disk`` in GiB, within what a host can be asked for."""

    name: FlavorName
    ram: Annotated[int, Number, Field(ge=64, le=16 * 1024 * 1024)]
    vcpus: Annotated[int, Number, Field(ge=1, le=255)]
    disk: Annotated[int, Number, Field(ge=1, le=64 * 1024)]
    id: Annotated[FlavorId, BeforeValidator(lambda value: str(value) if type(value) is int else value)] | None = None
    swap: Annotated[Literal[0], Number] | Literal[""] = 0
    rxtx_factor: Annotated[float, Field(strict=False, gt=0, le=1000)] = 1.0
    ephemeral: Annotated[Literal[0], Number] = Field(default=0, alias="OS-FLV-EXT-DATA:ephemeral")
    is_public: bool = Field(default=True, alias="os-flavor-access:is_public")
    description: Description | None = None


class CreateFlavor(Body):
    flavor: NewFlavor


class NewDescription(Body):
    description: Description | None


class UpdateFlavor(Body):
    flavor: NewDescription


SpecValue = Annotated[Line, BeforeValidator(lambda value: str(value) if type(value) in {int, float} else value)]


class SetExtraSpecs(Body):
    extra_specs: Annotated[dict[Key, SpecValue], Field(max_length=128)]


class OneExtraSpec(RootModel[Annotated[dict[Key, SpecValue], Field(min_length=1, max_length=1)]]):
    """One key with its value."""


class Tenant(Body):
    tenant: Annotated[Line, Field(min_length=1)]


class FlavorAction(Body):
    """Exactly one of the two."""

    add: Tenant | None = Field(default=None, alias="addTenantAccess")
    remove: Tenant | None = Field(default=None, alias="removeTenantAccess")


class FlavorQuery(PageQuery):
    """``is_public`` is for administrators: true, false or none (all)."""

    is_public: Annotated[str, Field(max_length=10)] | None = None
    min_disk: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = Field(default=None, alias="minDisk")
    min_ram: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = Field(default=None, alias="minRam")

    @property
    def public(self) -> bool | None:
        match (self.is_public or "true").lower():
            case "true" | "t" | "1" | "yes" | "on":
                return True
            case "false" | "f" | "0" | "no" | "off":
                return False
            case "none":
                return None
        raise BadRequest(f"Invalid is_public filter [{self.is_public}]", remedy="true, false or none")


class FlavorRoutes:
    """``max_limit`` is the most that a page has."""

    def __init__(self, flavors: Flavors, *, max_limit: int) -> None:
        self._flavors = flavors
        self._max_limit = max_limit

    def routes(self) -> Iterable[Route]:
        one, specs, admin = "/flavors/{flavor_id}", "/flavors/{flavor_id}/os-extra_specs", Role.ADMIN
        spec = f"{specs}/{{key}}"
        return (
            Route("GET", "/flavors", "listFlavors", self._list, query=FlavorQuery),
            Route("GET", "/flavors/detail", "listFlavorsDetail", self._detail, query=FlavorQuery),
            Route("POST", "/flavors", "createFlavor", self._create, role=admin, body=CreateFlavor),
            Route("GET", one, "showFlavor", self._show),
            Route("PUT", one, "updateFlavor", self._update, role=admin, body=UpdateFlavor, since=DESCRIPTIONS),
            Route("DELETE", one, "deleteFlavor", self._delete, role=admin, status=202),
            Route("GET", specs, "listExtraSpecs", self._list_specs),
            Route("POST", specs, "setExtraSpecs", self._set_specs, role=admin, body=SetExtraSpecs),
            Route("GET", spec, "showExtraSpec", self._show_spec),
            Route("PUT", spec, "updateExtraSpec", self._update_spec, role=admin, body=OneExtraSpec),
            Route("DELETE", spec, "unsetExtraSpec", self._unset_spec, role=admin),
            Route("GET", f"{one}/os-flavor-access", "listFlavorAccess", self._list_access, role=admin),
            Route("POST", f"{one}/action", "flavorAction", self._action, role=admin, body=FlavorAction),
        )

    async def _list(self, call: Call) -> dict[str, Any]:
        """List flavors."""
        return await self._page(call, "/flavors", detailed=False)

    async def _detail(self, call: Call) -> dict[str, Any]:
        """List flavors with details."""
        return await self._page(call, "/flavors/detail", detailed=True)

    async def _page(self, call: Call, path: str, *, detailed: bool) -> dict[str, Any]:
        query = call.query_as(FlavorQuery)
        where = []
        if query.min_disk is not None:
            where.append(FlavorRow.root_gb >= query.min_disk)
        if query.min_ram is not None:
            where.append(FlavorRow.memory_mb >= query.min_ram)
        most = query.page_size(self._max_limit)
        found = await self._flavors.page(
            call.caller, query, most=most, public=query.public if call.caller.is_admin else None, where=where
        )
        view = detail if detailed else brief
        page: dict[str, Any] = {"flavors": [view(flavor, call) for flavor in found]}
        if found and len(found) == most:
            page["flavors_links"] = next_links(call.base, path, query, found[-1].id)
        return page

    async def _create(self, call: Call) -> dict[str, Any]:
        """Create a flavor."""
        asked = call.body_as(CreateFlavor).flavor
        if asked.description is not None and call.version < DESCRIPTIONS:
            raise BadRequest(f"needs microversion {DESCRIPTIONS}", field="flavor.description")
        made = await self._flavors.create(
            Flavor(
                id="" if asked.id in {None, "auto"} else str(asked.id),
                name=asked.name,
                vcpus=asked.vcpus,
                memory_mb=asked.ram,
                root_gb=asked.disk,
                is_public=asked.is_public,
                description=asked.description,
            )
        )
        return {"flavor": detail(made, call)}

    async def _show(self, call: Call) -> dict[str, Any]:
        """Show a flavor."""
        return {"flavor": detail(await self._flavors.get(call.caller, _flavor_id(call)), call)}

    async def _update(self, call: Call) -> dict[str, Any]:
        """Describe a flavor."""
        await self._flavors.describe(_flavor_id(call), call.body_as(UpdateFlavor).flavor.description)
        return await self._show(call)

    async def _delete(self, call: Call) -> None:
        """Delete a flavor; servers keep what they were made of."""
        await self._flavors.delete(_flavor_id(call))

    async def _list_specs(self, call: Call) -> dict[str, Any]:
        """List a flavor's extra specs."""
        return {"extra_specs": (await self._flavors.get(call.caller, _flavor_id(call))).extra_specs}

    async def _set_specs(self, call: Call) -> dict[str, Any]:
        """Set extra specs of a flavor, and leave its others."""
        asked = call.body_as(SetExtraSpecs).extra_specs
        await self._flavors.set_extra_specs(_flavor_id(call), asked)
        return {"extra_specs": asked}

    async def _show_spec(self, call: Call) -> dict[str, Any]:
        """Show one extra spec of a flavor."""
        key = call.parameters["key"]
        specs = (await self._flavors.get(call.caller, _flavor_id(call))).extra_specs
        if key not in specs:
            raise ItemNotFound(f"Flavor {_flavor_id(call)} has no extra specs with key {key}.")
        return {key: specs[key]}

    async def _update_spec(self, call: Call) -> dict[str, Any]:
        """Set one extra spec of a flavor."""
        asked = call.body_as(OneExtraSpec).root
        if call.parameters["key"] not in asked:
            raise BadRequest("Request body and URI mismatch")
        await self._flavors.set_extra_specs(_flavor_id(call), asked)
        return asked

    async def _unset_spec(self, call: Call) -> Answer:
        """Remove an extra spec of a flavor."""
        await self._flavors.unset_extra_spec(_flavor_id(call), call.parameters["key"])
        return Answer()

    async def _list_access(self, call: Call) -> dict[str, Any]:
        """List the projects that may use a private flavor."""
        return _access(_flavor_id(call), await self._flavors.projects(_flavor_id(call)))

    async def _action(self, call: Call) -> dict[str, Any]:
        """Let a project use a private flavor, or no more."""
        asked, flavor_id = call.body_as(FlavorAction), _flavor_id(call)
        match asked.add, asked.remove:
            case Tenant(tenant=project), None:
                return _access(flavor_id, await self._flavors.allow(flavor_id, project))
            case None, Tenant(tenant=project):
                return _access(flavor_id, await self._flavors.disallow(flavor_id, project))
        raise BadRequest("There is no such action", remedy="one of addTenantAccess, removeTenantAccess")


def brief(flavor: Flavor, call: Call) -> dict[str, Any]:
    """As in a list without details."""
    view: dict[str, Any] = {"id": flavor.id, "name": flavor.name, "links": links(flavor.id, call)}
    if call.version >= DESCRIPTIONS:
        view["description"] = flavor.description
    return view


def detail(flavor: Flavor, call: Call) -> dict[str, Any]:
    """All of it, as the call's microversion has it."""
    view = {
        **brief(flavor, call),
        "vcpus": flavor.vcpus,
        "ram": flavor.memory_mb,
        "disk": flavor.root_gb,
        "swap": "",
        "rxtx_factor": 1.0,
        "OS-FLV-DISABLED:disabled": False,
        "OS-FLV-EXT-DATA:ephemeral": 0,
        "os-flavor-access:is_public": flavor.is_public,
    }
    if call.version >= EXTRA_SPECS_SHOWN:
        view["extra_specs"] = dict(flavor.extra_specs)
    return view


def links(flavor_id: str, call: Call) -> list[dict[str, str]]:
    root = call.base.removesuffix("/v2.1")
    return [
        {"rel": "self", "href": f"{call.base}/flavors/{flavor_id}"},
        {"rel": "bookmark", "href": f"{root}/flavors/{flavor_id}"},
    ]


def _flavor_id(call: Call) -> str:
    return call.parameters["flavor_id"]


def _access(flavor_id: str, projects: Iterable[str]) -> dict[str, Any]:
    return {"flavor_access": [{"flavor_id": flavor_id, "tenant_id": project} for project in projects]}
