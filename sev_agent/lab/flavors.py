"""The flavor that a lab has from the beginning."""

import aiohttp

from sev_agent.config import ServiceSection
from sev_agent.lab.accounts import admin
from sev_agent.lab.openstack import OpenStack
from sev_agent.openstack.compute_api import ComputeApi, FlavorNotFound
from sev_agent.openstack.identity import KeystoneIdentity
from sev_agent.sev import tags

NAME = "sev.small"


async def ensure_flavor(session: aiohttp.ClientSession, cloud: OpenStack, compute_url: str) -> str:
    """The identifier of a small flavor for encrypted guests, made if it is missing."""
    compute = _client(session, cloud, compute_url)
    try:
        found = await compute.find_flavor(NAME)
    except FlavorNotFound:
        found = await compute.create_flavor(
            NAME, vcpus=1, ram=256, disk=1, is_public=True, extra_specs=tags.flavor_tags()
        )
    return f"{found.name} {found.id}"


async def exists(session: aiohttp.ClientSession, cloud: OpenStack, compute_url: str, name: str) -> bool:
    """Whether there is a flavor ``name``."""
    try:
        await _client(session, cloud, compute_url).find_flavor(name)
    except FlavorNotFound:
        return False
    return True


def _client(session: aiohttp.ClientSession, cloud: OpenStack, compute_url: str) -> ComputeApi:
    return ComputeApi(session, KeystoneIdentity(session, admin(cloud)), ServiceSection(endpoint=compute_url))
