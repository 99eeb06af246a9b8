"""The guest image in the lab's Glance, described as the method asks."""

import asyncio
import contextlib
import hashlib
from pathlib import Path
from uuid import UUID

import aiohttp

from sev_agent.config import ServiceSection
from sev_agent.errors import SevAgentError
from sev_agent.lab.accounts import admin
from sev_agent.lab.openstack import OpenStack
from sev_agent.openstack.glance import Glance, ImageNotFound
from sev_agent.openstack.identity import KeystoneIdentity
from sev_agent.sev import tags

NAME = "sev-guest"
_UPLOAD_TIMEOUT = 600.0


async def ensure_guest_image(session: aiohttp.ClientSession, cloud: OpenStack, path: Path, known: UUID | None) -> UUID:
    """The identifier of an active image with the content of the qcow2 file ``path``; ``known`` if that is one."""
    glance = Glance(session, KeystoneIdentity(session, admin(cloud)), ServiceSection(endpoint=cloud.glance_url))
    if known is not None and await _is_it(glance, known, path):
        return known
    image = await glance.create_image(
        NAME, disk_format="qcow2", visibility="public", min_disk=1, min_ram=256, properties=tags.IMAGE
    )
    try:
        await glance.upload(image.id, path, total_timeout=_UPLOAD_TIMEOUT)
    except BaseException:
        with contextlib.suppress(SevAgentError):
            await glance.delete_image(image.id)
        raise
    return image.id


async def _is_it(glance: Glance, image_id: UUID, path: Path) -> bool:
    try:
        image = await glance.get_image(image_id)
    except ImageNotFound:
        return False
    if image.status != "active" or image.os_hash_algo is None:
        return False
    return image.os_hash_value == await asyncio.to_thread(_digest, path, image.os_hash_algo)


def _digest(path: Path, algorithm: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()
