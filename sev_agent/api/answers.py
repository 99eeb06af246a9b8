"""Which model each operation answers with. The models make the document, and the tests hold every answer against them.

No answer is checked by them when it is sent. What a microversion or a role brings has a default: it may be left out.
"""

from collections.abc import Iterable, Mapping
from typing import Final

from pydantic import BaseModel

from sev_agent.api.cloud_answers import Extensions, ProjectLimits, ProjectQuota, ProjectQuotaUse, Zones
from sev_agent.api.flavor_answers import BriefFlavors, DetailedFlavors, ExtraSpec, ExtraSpecs, FlavorAccess, OneFlavor
from sev_agent.api.keypair_answers import ImportedKeypair, Keypairs, OneKeypair
from sev_agent.api.network_answers import OfferedNetworks, OneOfferedNetwork, OneTenantNetwork, TenantNetworks
from sev_agent.api.routes import Route
from sev_agent.api.server_answers import (
    AddressesOfNetwork,
    BriefServers,
    ConsoleOutput,
    CreatedServers,
    DetailedServers,
    Interfaces,
    OneServer,
    SecurityGroups,
    ServerAddresses,
    ServerMetadata,
    ServerMetadatum,
    ServerTags,
    Volumes,
)

ANSWERS: Final[Mapping[str, type[BaseModel]]] = {
    "listFlavors": BriefFlavors,
    "listFlavorsDetail": DetailedFlavors,
    "createFlavor": OneFlavor,
    "showFlavor": OneFlavor,
    "updateFlavor": OneFlavor,
    "listExtraSpecs": ExtraSpecs,
    "setExtraSpecs": ExtraSpecs,
    "showExtraSpec": ExtraSpec,
    "updateExtraSpec": ExtraSpec,
    "listFlavorAccess": FlavorAccess,
    "flavorAction": FlavorAccess,
    "createServer": CreatedServers,
    "listServers": BriefServers,
    "listServersDetail": DetailedServers,
    "showServer": OneServer,
    "updateServer": OneServer,
    "serverAction": ConsoleOutput,
    "listMetadata": ServerMetadata,
    "updateMetadata": ServerMetadata,
    "replaceMetadata": ServerMetadata,
    "showMetadatum": ServerMetadatum,
    "setMetadatum": ServerMetadatum,
    "listTags": ServerTags,
    "replaceTags": ServerTags,
    "listKeypairs": Keypairs,
    "createKeypair": ImportedKeypair,
    "showKeypair": OneKeypair,
    "showLimits": ProjectLimits,
    "showQuota": ProjectQuota,
    "showDefaultQuota": ProjectQuota,
    "showQuotaDetail": ProjectQuotaUse,
    "listZones": Zones,
    "listZonesDetail": Zones,
    "listNetworks": OfferedNetworks,
    "showNetwork": OneOfferedNetwork,
    "listTenantNetworks": TenantNetworks,
    "showTenantNetwork": OneTenantNetwork,
    "listAddresses": ServerAddresses,
    "listAddressesOfNetwork": AddressesOfNetwork,
    "listExtensions": Extensions,
    "listInterfaces": Interfaces,
    "listVolumes": Volumes,
    "listSecurityGroups": SecurityGroups,
}
"""By the operation. The others answer without a body."""

_ONLY: Final = {"serverAction": (200,)}


def statuses_with_body(route: Route) -> Iterable[int]:
    """The statuses of a success whose answer has a body, which is as ``ANSWERS`` says."""
    if route.name not in ANSWERS:
        return ()
    return _ONLY.get(route.name, (route.status, *route.other_statuses))
