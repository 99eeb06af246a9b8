"""What each operation answers, as models: they make the document, and the tests hold every answer against them.

No answer is checked by them when it is sent. What a microversion or a role brings has a default: it may be left out.
"""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, RootModel

from sev_agent.api.routes import Route
from sev_agent.api.state import Task, Vm

_Uuid = Annotated[str, Field(json_schema_extra={"format": "uuid"})]
_Texts = dict[str, str]
_Vm = Annotated[Vm, Field(strict=False)]
_Task = Annotated[Task, Field(strict=False)]


class Part(BaseModel):
    """An answer's body, or a part of it: with these fields and no others."""

    model_config = ConfigDict(strict=True, extra="forbid")


class Address(Part):
    addr: str
    version: Literal[4, 6]


class ExtendedAddress(Address):
    type: Literal["fixed"] = Field(alias="OS-EXT-IPS:type")
    mac_addr: str = Field(alias="OS-EXT-IPS-MAC:mac_addr")


class Link(Part):
    rel: Literal["self", "bookmark", "next"]
    href: str


class BriefFlavor(Part):
    id: str
    name: str
    links: list[Link]
    description: str | None = None


class DetailedFlavor(BriefFlavor):
    vcpus: int
    ram: int
    disk: int
    swap: Literal[""]
    rxtx_factor: float
    disabled: bool = Field(alias="OS-FLV-DISABLED:disabled")
    ephemeral: int = Field(alias="OS-FLV-EXT-DATA:ephemeral")
    is_public: bool = Field(alias="os-flavor-access:is_public")
    extra_specs: _Texts = {}


class OneFlavor(Part):
    flavor: DetailedFlavor


class BriefFlavors(Part):
    flavors: list[BriefFlavor]
    flavors_links: list[Link] = []


class DetailedFlavors(Part):
    flavors: list[DetailedFlavor]
    flavors_links: list[Link] = []


class ExtraSpecs(Part):
    extra_specs: _Texts


class ExtraSpec(RootModel[_Texts]):
    """One key with its value."""


class Access(Part):
    flavor_id: str
    tenant_id: str


class FlavorAccess(Part):
    flavor_access: list[Access]


class GroupName(Part):
    name: str


class MadeServer(Part):
    id: _Uuid
    links: list[Link]
    disk_config: str = Field(alias="OS-DCF:diskConfig")
    security_groups: list[GroupName]


class Made(Part):
    server: MadeServer


class Reserved(Part):
    reservation_id: str


class CreatedServers(RootModel[Made | Reserved]):
    """The first server, or what all of them have in common where ``return_reservation_id`` asked for it."""


class BriefServer(Part):
    id: _Uuid
    name: str
    links: list[Link]


class Referred(Part):
    id: str
    links: list[Link]


class EmbeddedFlavor(Part):
    """The flavor as it was at the creation, from microversion 2.47 on."""

    original_name: str
    vcpus: int
    ram: int
    disk: int
    ephemeral: int
    swap: int
    extra_specs: _Texts


class ServerFault(Part):
    code: int
    created: str
    message: str
    details: str = ""


class DetailedServer(BriefServer):
    status: Literal["ACTIVE", "BUILD", "DELETED", "ERROR", "HARD_REBOOT", "REBOOT", "SHUTOFF"]
    tenant_id: str
    user_id: str
    metadata: _Texts
    host_id: str = Field(alias="hostId")
    image: Referred
    flavor: Referred | EmbeddedFlavor
    created: str
    updated: str
    addresses: dict[str, list[ExtendedAddress]]
    access_ipv4: str = Field(alias="accessIPv4")
    access_ipv6: str = Field(alias="accessIPv6")
    disk_config: str = Field(alias="OS-DCF:diskConfig")
    availability_zone: str = Field(alias="OS-EXT-AZ:availability_zone")
    config_drive: Literal["True"]
    key_name: str | None
    launched_at: str | None = Field(alias="OS-SRV-USG:launched_at")
    terminated_at: str | None = Field(alias="OS-SRV-USG:terminated_at")
    task_state: _Task | None = Field(alias="OS-EXT-STS:task_state")
    vm_state: _Vm = Field(alias="OS-EXT-STS:vm_state")
    power_state: Literal[0, 1, 4] = Field(alias="OS-EXT-STS:power_state")
    security_groups: list[GroupName]
    volumes: list[Any] = Field(alias="os-extended-volumes:volumes_attached")
    progress: int = 0
    fault: ServerFault = Field(default=None)  # type: ignore[assignment] # left out, never null
    locked: bool = False
    description: str | None = None
    tags: list[str] = []
    host: str | None = Field(default=None, alias="OS-EXT-SRV-ATTR:host")
    hypervisor_hostname: str | None = Field(default=None, alias="OS-EXT-SRV-ATTR:hypervisor_hostname")
    instance_name: str = Field(default="", alias="OS-EXT-SRV-ATTR:instance_name")
    reservation_id: str = Field(default="", alias="OS-EXT-SRV-ATTR:reservation_id")
    launch_index: int = Field(default=0, alias="OS-EXT-SRV-ATTR:launch_index")
    hostname: str = Field(default="", alias="OS-EXT-SRV-ATTR:hostname")
    kernel_id: str = Field(default="", alias="OS-EXT-SRV-ATTR:kernel_id")
    ramdisk_id: str = Field(default="", alias="OS-EXT-SRV-ATTR:ramdisk_id")
    root_device_name: str = Field(default="", alias="OS-EXT-SRV-ATTR:root_device_name")
    user_data: None = Field(default=None, alias="OS-EXT-SRV-ATTR:user_data")
    host_status: str = ""


class OneServer(Part):
    server: DetailedServer


class BriefServers(Part):
    servers: list[BriefServer]
    servers_links: list[Link] = []


class DetailedServers(Part):
    servers: list[DetailedServer]
    servers_links: list[Link] = []


class ConsoleOutput(Part):
    output: str


class ServerMetadata(Part):
    metadata: _Texts


class ServerMetadatum(Part):
    meta: _Texts


class ServerTags(Part):
    tags: list[str]


class BriefKeypair(Part):
    name: str
    public_key: str
    fingerprint: str
    type: Literal["ssh"] = "ssh"


class MadeKeypair(BriefKeypair):
    user_id: str


class DetailedKeypair(MadeKeypair):
    deleted: bool
    created_at: str
    updated_at: None
    deleted_at: None


class ImportedKeypair(Part):
    keypair: MadeKeypair


class OneKeypair(Part):
    keypair: DetailedKeypair


class ListedKeypair(Part):
    keypair: BriefKeypair


class Keypairs(Part):
    keypairs: list[ListedKeypair]
    keypairs_links: list[Link] = []


class Limits(Part):
    rate: list[Any]
    absolute: dict[str, int]


class ProjectLimits(Part):
    limits: Limits


class QuotaSet(Part):
    id: str
    instances: int
    cores: int
    ram: int
    key_pairs: int
    metadata_items: int


class ProjectQuota(Part):
    quota_set: QuotaSet


class QuotaUse(Part):
    limit: int
    in_use: int
    reserved: int


class QuotaSetUse(Part):
    id: str
    instances: QuotaUse
    cores: QuotaUse
    ram: QuotaUse
    key_pairs: QuotaUse
    metadata_items: QuotaUse


class ProjectQuotaUse(Part):
    quota_set: QuotaSetUse


class ZoneState(Part):
    available: bool


class Zone(Part):
    zone_name: str = Field(alias="zoneName")
    zone_state: ZoneState = Field(alias="zoneState")
    hosts: None


class Zones(Part):
    zones: list[Zone] = Field(alias="availabilityZoneInfo")


class OfferedNetwork(Part):
    id: _Uuid
    label: str


class OfferedNetworks(Part):
    networks: list[OfferedNetwork]


class OneOfferedNetwork(Part):
    network: OfferedNetwork


class TenantNetwork(OfferedNetwork):
    cidr: str


class TenantNetworks(Part):
    networks: list[TenantNetwork]


class OneTenantNetwork(Part):
    network: TenantNetwork


class ServerAddresses(Part):
    addresses: dict[str, list[Address]]


class AddressesOfNetwork(RootModel[dict[str, list[Address]]]):
    """By the network's label, of which there is one."""


class SecurityGroups(Part):
    security_groups: list[Any]


class Extensions(Part):
    extensions: list[Any]


class Interfaces(Part):
    ports: list[dict[str, Any]] = Field(alias="interfaceAttachments")


class Volumes(Part):
    volumes: list[Any] = Field(alias="volumeAttachments")


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
