"""Who may use the lab's cloud, and where its services are: Keystone's projects, users and catalog."""

import json
from collections.abc import Mapping
from typing import Any

import aiohttp
from pydantic import SecretStr

from sev_agent.config import AuthSection, ServiceSection
from sev_agent.lab.openstack import REGION, SERVICE_PROJECT, SERVICE_USER, OpenStack
from sev_agent.lab.side_by_side import side_by_side
from sev_agent.lab.tenants import PROJECTS, ROLES, TENANTS, Tenant
from sev_agent.openstack.client import ServiceClient
from sev_agent.openstack.identity import KeystoneIdentity

ADMIN = "admin"
_DOMAIN = "default"


def admin(cloud: OpenStack) -> AuthSection:
    """The credentials of the administrator that Keystone's bootstrap made."""
    return AuthSection(
        auth_url=f"{cloud.keystone_url}/v3",
        username=ADMIN,
        password=SecretStr(cloud.password),
        project_name=ADMIN,
        region_name=REGION,
    )


def service_user(cloud: OpenStack) -> AuthSection:
    """The credentials of the user as which Glance, Placement and the agents speak."""
    return admin(cloud).model_copy(update={"username": SERVICE_USER, "project_name": SERVICE_PROJECT})


class Accounts:
    """Makes what is missing, and leaves what is there."""

    def __init__(self, session: aiohttp.ClientSession, cloud: OpenStack) -> None:
        self._cloud = cloud
        self._keystone = ServiceClient(
            session,
            KeystoneIdentity(session, admin(cloud)),
            name="keystone",
            service_type="identity",
            settings=ServiceSection(endpoint=cloud.keystone_url),
        )

    async def ensure(self) -> None:
        """The service project and user, and the entries of Glance and Placement in the catalog."""
        project = await self._make("projects", {"name": SERVICE_PROJECT, "domain_id": _DOMAIN})
        user = await self._make(
            "users", {"name": SERVICE_USER, "domain_id": _DOMAIN}, {"password": self._cloud.password}
        )
        for role_name in ("admin", "service"):
            role = await self._make("roles", {"name": role_name})
            await self._keystone.request("PUT", f"/v3/projects/{project}/users/{user}/roles/{role}", accepted={204})
        await self._list("glance", "image", self._cloud.glance_url)
        await self._list("placement", "placement", self._cloud.placement_url)

    async def ensure_tenants(self, compute_url: str) -> None:
        """The compute API's entry in the catalog, and the tenants who use it."""
        await self._list("sev-agent", "compute", compute_url)
        projects = {name: await self._make("projects", {"name": name, "domain_id": _DOMAIN}) for name in PROJECTS}
        roles = {name: await self._make("roles", {"name": name}) for name in ROLES}
        await side_by_side(*(self._make_tenant(each, projects[each.project], roles[each.role]) for each in TENANTS))

    async def _list(self, name: str, kind: str, url: str) -> None:
        """Put the service ``name`` into the catalog."""
        service = await self._make("services", {"name": name, "type": kind})
        where = {"service_id": service, "interface": "public", "region_id": REGION}
        await self._make("endpoints", where, {"url": url})

    async def _make_tenant(self, tenant: Tenant, project: str, role: str) -> None:
        password = tenant.password(self._cloud.password)
        user = await self._make("users", {"name": tenant.name, "domain_id": _DOMAIN}, {"password": password})
        await self._keystone.request("PUT", f"/v3/projects/{project}/users/{user}/roles/{role}", accepted={204})

    async def _make(self, kind: str, key: Mapping[str, str], more: Mapping[str, str] | None = None) -> str:
        """The identifier of the one ``kind`` (a plural) that ``key`` describes, created with ``more`` if missing."""
        path = f"/v3/{kind}"
        listed = await self._keystone.request("GET", path, params=key, accepted={200})
        found: list[dict[str, Any]] = json.loads(listed.body)[kind]
        if found:
            return str(found[0]["id"])
        singular = kind.removesuffix("s")
        made = await self._keystone.request("POST", path, json={singular: {**key, **(more or {})}}, accepted={201})
        return str(json.loads(made.body)[singular]["id"])
