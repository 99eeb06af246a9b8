"""Images as the caller sees them in Glance."""

from uuid import UUID

import aiohttp

from sev_agent.api.caller import Caller
from sev_agent.api.faults import BadRequest, Forbidden, Unauthorized
from sev_agent.config import ServiceSection
from sev_agent.openstack.exchange import Forbidden as GlanceForbids
from sev_agent.openstack.exchange import RequestObserver, RequestRefused, ignore_request
from sev_agent.openstack.glance import Glance, Image, ImageNotFound
from sev_agent.openstack.identity import AuthenticationFailed, BorrowedIdentity, Identity
from sev_agent.sev.image_form import ImageForm, check_form


class TenantImages:
    """Asks Glance with the caller's own token, so that nobody boots an image that they may not see."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        identity: Identity,
        settings: ServiceSection,
        *,
        on_request: RequestObserver = ignore_request,
    ) -> None:
        self._session = session
        self._identity = identity
        self._settings = settings
        self._on_request = on_request

    async def get(self, caller: Caller, image_id: str) -> Image:
        """Raises ``BadRequest`` for an image that is not there, ``Unauthorized``, ``Unavailable``.

        Also ``ImageInactive`` and ``ImageFormatUnsupported``: such an image would fail on every host.
        """
        identity = self._identity if caller.token is None else BorrowedIdentity(caller.token, self._identity)
        glance = Glance(self._session, identity, self._settings, on_request=self._on_request)
        try:
            image = await glance.get_image(UUID(image_id))
        except ImageNotFound:
            raise BadRequest("Can not find requested image", field="server.imageRef") from None
        except GlanceForbids as error:
            raise Forbidden(f"Glance does not let you see image {image_id}") from error
        except RequestRefused as error:
            raise BadRequest(f"Glance refuses image {image_id}: {error.message}", field="server.imageRef") from error
        except AuthenticationFailed as error:
            if caller.token is None:
                raise
            raise Unauthorized("Glance does not accept the token (any more).") from error
        check_form(
            ImageForm(status=image.status, disk_format=image.disk_format, container_format=image.container_format)
        )
        return image
