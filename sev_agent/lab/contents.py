"""What a lab's services are filled with: accounts, tenants, the guest image, a flavor."""

from pathlib import Path
from uuid import UUID

import aiohttp

from sev_agent.lab import images
from sev_agent.lab.accounts import Accounts
from sev_agent.lab.flavors import ensure_flavor
from sev_agent.lab.openstack import OpenStack
from sev_agent.lab.progress import Progress


class Contents:
    """Puts into the services of ``cloud`` what is missing, and leaves what is there. ``progress`` hears of it."""

    def __init__(self, cloud: OpenStack, progress: Progress) -> None:
        self._cloud = cloud
        self._progress = progress

    async def accounts(self) -> None:
        """The accounts of the services."""
        with self._progress.step("accounts"):
            async with aiohttp.ClientSession() as session:
                await Accounts(session, self._cloud).ensure()

    async def tenants(self, compute_url: str) -> None:
        """The tenants, and the compute API in the catalog that they read."""
        with self._progress.step("tenants"):
            async with aiohttp.ClientSession() as session:
                await Accounts(session, self._cloud).ensure_tenants(compute_url)

    async def image(self, cache: Path, known: UUID | None) -> UUID:
        """The guest image, made in ``cache``: its identifier in Glance, ``known`` if it is there already."""
        from sev_agent.lab.platform.guest_image import build_guest_image  # noqa: PLC0415

        with self._progress.step("guest image") as say:
            path = await build_guest_image(cache, say)
            say(f"{path.name} into Glance")
            async with aiohttp.ClientSession() as session:
                image_id = await images.ensure_guest_image(session, self._cloud, path, known)
            say(str(image_id))
        return image_id

    async def flavor(self, compute_url: str) -> None:
        """A flavor for the guest image."""
        with self._progress.step("flavor") as say:
            async with aiohttp.ClientSession() as session:
                say(await ensure_flavor(session, self._cloud, compute_url))
