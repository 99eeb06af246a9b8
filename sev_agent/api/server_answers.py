"""What the operations on servers answer, with their metadata, tags and consoles."""

from typing import Annotated, Any, Literal

from pydantic import Field, RootModel

from sev_agent.api.answer_parts import Link, Part, Texts, Uuid
from sev_agent.api.state import Task, Vm

_Vm = Annotated[Vm, Field(strict=False)]
_Task = Annotated[Task, Field(strict=False)]


class Address(Part):
    addr: str
    version: Literal[4, 6]


class ExtendedAddress(Address):
    type: Literal["fixed"] = Field(alias="OS-EXT-IPS:type")
    mac_addr: str = Field(alias="OS-EXT-IPS-MAC:mac_addr")


class GroupName(Part):
    name: str


class MadeServer(Part):
    id: Uuid
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
    id: Uuid
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
    extra_specs: Texts


class ServerFault(Part):
    code: int
    created: str
    message: str
    details: str = ""


class DetailedServer(BriefServer):
    status: Literal["ACTIVE", "BUILD", "DELETED", "ERROR", "HARD_REBOOT", "REBOOT", "SHUTOFF"]
    tenant_id: str
    user_id: str
    metadata: Texts
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
    tags: list[str] = Field(default=[])
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
    servers_links: list[Link] = Field(default=[])


class DetailedServers(Part):
    servers: list[DetailedServer]
    servers_links: list[Link] = Field(default=[])


class ConsoleOutput(Part):
    output: str


class ServerMetadata(Part):
    metadata: Texts


class ServerMetadatum(Part):
    meta: Texts


class ServerTags(Part):
    tags: list[str]


class ServerAddresses(Part):
    addresses: dict[str, list[Address]]


class AddressesOfNetwork(RootModel[dict[str, list[Address]]]):
    """By the network's label, of which there is one."""


class SecurityGroups(Part):
    security_groups: list[Any]


class Interfaces(Part):
    ports: list[dict[str, Any]] = Field(alias="interfaceAttachments")


class Volumes(Part):
    volumes: list[Any] = Field(alias="volumeAttachments")
