"""Who the operator is to the cloud: the ``OS_*`` variables of an openrc file."""

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Final

import aiohttp
import typer
from pydantic import ValidationError

from sev_agent.config import AuthSection, ConfigurationError, ServiceSection
from sev_agent.openstack.compute_api import ComputeApi
from sev_agent.openstack.exchange import Forbidden
from sev_agent.openstack.glance import Glance
from sev_agent.openstack.identity import AuthenticationFailed, Identity, KeystoneIdentity, NoIdentity

ComputeEndpoint = Annotated[
    str | None, typer.Option("--endpoint", help="The compute API's address.", show_default="the catalog's")
]
ImageEndpoint = Annotated[
    str | None, typer.Option("--image-endpoint", help="Glance's address.", show_default="the catalog's")
]

_SETTINGS: Final = {
    "OS_AUTH_URL": "auth_url",
    "OS_USERNAME": "username",
    "OS_PASSWORD": "password",
    "OS_PROJECT_NAME": "project_name",
    "OS_USER_DOMAIN_NAME": "user_domain_name",
    "OS_PROJECT_DOMAIN_NAME": "project_domain_name",
    "OS_USER_DOMAIN_ID": "user_domain_id",
    "OS_PROJECT_DOMAIN_ID": "project_domain_id",
    "OS_REGION_NAME": "region_name",
}
_NEEDED: Final = ("OS_AUTH_URL", "OS_USERNAME", "OS_PASSWORD", "OS_PROJECT_NAME")
_PASSWORD_TYPES: Final = frozenset({"password", "v3password"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Cloud:
    """The services that the commands for flavors and images speak to."""

    glance: Glance
    compute: ComputeApi


@asynccontextmanager
async def cloud(compute_endpoint: str | None, image_endpoint: str | None = None) -> AsyncIterator[Cloud]:
    """The cloud of this shell's environment. Raises ``ConfigurationError`` where the environment does not name one.

    Where the cloud refuses its user, within, the error names the environment; a daemon's would name its file.
    """
    auth = auth_from(os.environ)
    async with aiohttp.ClientSession() as session:
        identity: Identity = NoIdentity() if auth.type == "none" else KeystoneIdentity(session, auth)
        services = Cloud(
            glance=Glance(session, identity, _service("--image-endpoint", image_endpoint)),
            compute=ComputeApi(session, identity, _service("--endpoint", compute_endpoint)),
        )
        try:
            yield services
        except AuthenticationFailed as error:
            error.field, error.remedy = "OS_USERNAME", "check name, password, project and domains in the cloud's openrc"
            raise
        except Forbidden as error:
            error.remedy = "read the openrc of a user whose role permits it: an administrator, or the owner"
            raise


def auth_from(environment: Mapping[str, str]) -> AuthSection:
    """The credentials of an openrc file. Raises ``ConfigurationError`` that names the variable at fault."""
    kind = environment.get("OS_AUTH_TYPE", "password")
    if kind == "none":
        return AuthSection(type="none")
    if kind not in _PASSWORD_TYPES:
        raise ConfigurationError(
            f"this command does not know {kind!r}", field="OS_AUTH_TYPE", remedy="use an openrc with a password"
        )
    for name in _NEEDED:
        if not environment.get(name):
            raise ConfigurationError("not set", field=name, remedy="read the cloud's openrc file first: . openrc")
    values: dict[str, Any] = {key: environment[name] for name, key in _SETTINGS.items() if environment.get(name)}
    interface = environment.get("OS_INTERFACE") or environment.get("OS_ENDPOINT_TYPE") or "public"
    try:
        return AuthSection(**values, interface=interface.removesuffix("URL"))
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        names = {key: name for name, key in _SETTINGS.items()}
        name = names.get(str(fault["loc"][0]), "OS_INTERFACE")
        raise ConfigurationError(fault["msg"], field=name, remedy="correct it in the cloud's openrc file") from None


def _service(option: str, endpoint: str | None) -> ServiceSection:
    try:
        return ServiceSection(endpoint=endpoint)
    except ValidationError:
        raise ConfigurationError(
            f"{endpoint!r} is not an address", field=option, remedy="write it as http://HOST:PORT"
        ) from None
