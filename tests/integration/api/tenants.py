"""Who uses the API in the tests: projects and users in a real Keystone, an image in a real Glance."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import aiohttp
from pydantic import SecretStr

from sev_agent.config import AuthSection, ServiceSection
from sev_agent.lab.accounts import admin
from sev_agent.lab.openstack import OpenStack
from sev_agent.openstack.client import ServiceClient
from sev_agent.openstack.glance import Glance
from sev_agent.openstack.identity import KeystoneIdentity

PROPERTIES = {
    "hw_firmware_type": "uefi",
    "hw_mem_encryption": "True",
    "hw_machine_type": "q35",
    "hw_cdrom_bus": "scsi",
    "hw_scsi_model": "virtio-scsi",
}
"""What the method wants of an image."""

PASSWORD = "of-a-tenant"

_USERS = {"alice": ("red", "member"), "rita": ("red", "reader"), "bob": ("blue", "member"), "nobody": ("red", "none")}
"""Each with a project and a role in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenants:
    """``projects`` are identifiers by name; ``image`` fulfils the method, ``plain`` does not say so."""

    cloud: OpenStack
    projects: dict[str, str]
    image: UUID
    plain: UUID

    def credentials(self, user: str) -> AuthSection:
        """Of one of the users, or of the administrator."""
        if user == "admin":
            return admin(self.cloud)
        return admin(self.cloud).model_copy(
            update={"username": user, "password": SecretStr(PASSWORD), "project_name": _USERS[user][0]}
        )

    async def token(self, session: aiohttp.ClientSession, user: str) -> str:
        return await KeystoneIdentity(session, self.credentials(user)).token()

    @classmethod
    async def make(cls, cloud: OpenStack, directory: Path) -> "Tenants":
        async with aiohttp.ClientSession() as session:
            identity = KeystoneIdentity(session, admin(cloud))
            keystone = ServiceClient(
                session,
                identity,
                name="keystone",
                service_type="identity",
                settings=ServiceSection(endpoint=cloud.keystone_url),
            )
            projects = await _accounts(keystone)
            glance = Glance(session, identity, ServiceSection(endpoint=cloud.glance_url))
            data = directory / "image.raw"
            data.write_bytes(bytes(1024 * 1024))
            images = [await _image(glance, data, properties) for properties in (PROPERTIES, {})]
            return cls(cloud=cloud, projects=projects, image=images[0], plain=images[1])


async def _accounts(keystone: ServiceClient) -> dict[str, str]:
    async def make(kind: str, **values: Any) -> str:
        made = await keystone.request("POST", f"/v3/{kind}s", json={kind: values}, accepted={201})
        return str(json.loads(made.body)[kind]["id"])

    async def role(name: str) -> str:
        listed = json.loads((await keystone.request("GET", "/v3/roles", accepted={200})).body)["roles"]
        found = {each["name"]: str(each["id"]) for each in listed}
        return found.get(name) or await make("role", name=name)

    projects = {name: await make("project", name=name, domain_id="default") for name in ("red", "blue")}
    for name, (project, role_name) in _USERS.items():
        user = await make("user", name=name, domain_id="default", password=PASSWORD)
        path = f"/v3/projects/{projects[project]}/users/{user}/roles/{await role(role_name)}"
        await keystone.request("PUT", path, accepted={204})
    return projects


async def _image(glance: Glance, data: Path, properties: dict[str, str]) -> UUID:
    made = await glance.create_image("guest", disk_format="raw", visibility="public", properties=properties)
    await glance.upload(made.id, data, total_timeout=60)
    return made.id
