"""What a request to create or change a server may say."""

from ipaddress import IPv4Address
from typing import Annotated, Any, Final, Literal, Self
from uuid import UUID

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints, model_validator

from sev_agent.api.flavor_routes import Number
from sev_agent.api.routes import Body
from sev_agent.schema import MAX_USER_DATA, Text, is_base64, is_line

MAX_METADATA = 128
"""Items of a server. More are over a quota, and not malformed: as in Nova."""

MAX_TAGS = 50
DEFAULT_GROUP: Final = "default"
"""The security group that every server is in."""


def is_server_name(value: str) -> str:
    """The compute API trims it."""
    trimmed = is_line(value).strip()
    if not trimmed:
        raise ValueError("must not be empty")
    return trimmed


Name = Annotated[str, Field(max_length=255), AfterValidator(is_server_name)]
Description = Annotated[str, Field(max_length=255), AfterValidator(is_line)]
MetadataKey = Annotated[str, StringConstraints(min_length=1, max_length=255, pattern=r"^[a-zA-Z0-9\-_:. ]+$")]
MetadataValue = Annotated[Text, Field(max_length=255)]
Metadata = dict[MetadataKey, MetadataValue]
Tag = Annotated[str, StringConstraints(min_length=1, max_length=60, pattern=r"^[^,/]+$"), AfterValidator(is_line)]
Count = Annotated[int, Number, Field(ge=1, le=2**31 - 1)]


def _text_of_uuid(value: str) -> str:
    return str(UUID(value))


Id = Annotated[str, Field(max_length=36, json_schema_extra={"format": "uuid"}), AfterValidator(_text_of_uuid)]


class NetworkRequest(Body):
    """One NIC. ``fixed_ip`` is one of the network's own addresses. Ports are Neutron's, which is not part of this."""

    uuid: Id
    fixed_ip: Annotated[IPv4Address, Field(strict=False)] | None = None


class BlockDevice(Body):
    """The one that is offered: the image, copied to the host's own disk."""

    uuid: Id
    source_type: Literal["image"]
    destination_type: Literal["local"] = "local"
    boot_index: Annotated[Literal[0], Number] = 0
    delete_on_termination: Literal[True] = True
    volume_size: None = None


class SecurityGroup(Body):
    """Every server has it; there is no other."""

    name: Literal["default"]


_NOT_OFFERED = {
    "personality": "files are not injected; send user_data",
    "adminPass": "passwords are not injected; use key_name or user_data",
    "block_device_mapping": "servers boot from images, on the host's own disk",
    "networks.port": "there is no Neutron behind this API",
}


class NewServer(Body):
    """``user_data`` is base64, 65535 bytes at most. ``networks`` is "auto", "none" or a list of networks by UUID."""

    name: Name
    flavor_id: Annotated[str, BeforeValidator(lambda v: str(v) if type(v) is int else v), Field(max_length=255)] = (
        Field(alias="flavorRef")
    )
    image_id: Id = Field(alias="imageRef")
    description: Description | None = None
    networks: Literal["auto", "none"] | Annotated[tuple[NetworkRequest, ...], Field(max_length=8, strict=False)] = (
        "auto"
    )
    user_data: Annotated[str, Field(max_length=MAX_USER_DATA), AfterValidator(is_base64)] | None = None
    key_name: Annotated[str, Field(min_length=1, max_length=255), AfterValidator(is_line)] | None = None
    metadata: Metadata = Field(default_factory=dict)
    tags: Annotated[tuple[Tag, ...], Field(max_length=MAX_TAGS, strict=False)] = ()
    min_count: Count = 1
    max_count: Count | None = None
    return_reservation_id: bool = False
    availability_zone: Annotated[str, Field(min_length=1, max_length=255)] | None = None
    config_drive: bool | Literal["", "true", "True", "false", "False"] | None = None
    block_devices: Annotated[tuple[BlockDevice, ...], Field(max_length=1, strict=False)] = Field(
        default=(), alias="block_device_mapping_v2"
    )
    security_groups: Annotated[tuple[SecurityGroup, ...], Field(max_length=1, strict=False)] = ()
    disk_config: Literal["AUTO", "MANUAL"] | None = Field(default=None, alias="OS-DCF:diskConfig")

    @model_validator(mode="before")
    @classmethod
    def _only_what_is_offered(cls, value: Any) -> Any:
        if isinstance(value, dict):
            for name, why in _NOT_OFFERED.items():
                if name in value:
                    raise ValueError(f"'{name}' is not offered: {why}")
        return value

    @model_validator(mode="after")
    def _counts_fit(self) -> Self:
        if self.max_count is not None and self.min_count > self.max_count:
            raise ValueError("min_count must be <= max_count")
        return self

    @model_validator(mode="after")
    def _one_image(self) -> Self:
        if any(device.uuid != self.image_id for device in self.block_devices):
            raise ValueError("block_device_mapping_v2 must name the image of imageRef")
        return self

    @property
    def addresses(self) -> tuple[tuple[str, IPv4Address | None], ...]:
        """Of each NIC the network and the address that are asked for by name."""
        return () if isinstance(self.networks, str) else tuple((each.uuid, each.fixed_ip) for each in self.networks)

    @property
    def count(self) -> int:
        """How many servers at most: fewer, and never under ``min_count``, where a quota does not suffice for all."""
        return self.max_count if self.max_count is not None else self.min_count


class Hints(Body):
    """Scheduler hints: there are none here."""


class CreateServer(Body):
    server: NewServer
    hints: Hints | None = Field(default=None, alias="os:scheduler_hints")
    other_hints: Hints | None = Field(default=None, alias="OS-SCH-HNT:scheduler_hints")


class ServerChange(Body):
    name: Name | None = None
    description: Description | None = None


class UpdateServer(Body):
    server: ServerChange


class AllMetadata(Body):
    metadata: Metadata


class OneMetadatum(Body):
    meta: Annotated[dict[MetadataKey, MetadataValue], Field(min_length=1, max_length=1)]
