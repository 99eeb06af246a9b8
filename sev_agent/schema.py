"""The versioned arguments of the RPC methods: what may be asked of a host or a scheduler, and within which bounds."""

import base64
import binascii
import hashlib
import re
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Interface
from typing import Annotated, Any, Final, Literal, Self, TypeVar
from uuid import UUID

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from sev_agent.errors import InvalidRequest
from sev_agent.sev.generation import Generation

VERSION = "1.2"
"""1.1: ``scheduling`` of a build; the scheduler's methods. 1.2: ``address`` of a NIC."""

MAX_USER_DATA = 65535
"""Bytes of encoded user data, the bound of OpenStack's compute API."""

NAME_PATTERN = r"^[A-Za-z0-9](?:[A-Za-z0-9 ._:@+-]*[A-Za-z0-9._:@+-])?$"
_HOST_NAME_PATTERN = (
    r"^[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*$"
)
_DEVICE_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
_MAC_PATTERN = r"^[0-9a-f][02468ace](?::[0-9a-f]{2}){5}$"

# XML 1.0, section 2.2: what no escape can bring into a document, such as the domain's.
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_NOT_LINE = re.compile("[\t\n\r\x7f-\x9f\u2028\u2029]")
_MAX_PATH = 200


def _is_text(value: str) -> str:
    return _without(_NOT_XML, value)


def is_line(value: str) -> str:
    """``value``, where it is one line of characters that XML can hold. Raises ``ValueError``."""
    return _without(_NOT_LINE, _is_text(value))


def _without(characters: re.Pattern[str], value: str) -> str:
    if found := characters.search(value):
        raise ValueError(f"character U+{ord(found[0]):04X} is not allowed here")
    return value


Identifier = Annotated[UUID, Field(strict=False)]
"""A UUID; in messages its text."""

Line = Annotated[str, Field(max_length=255), AfterValidator(is_line)]
"""A text on one line, of characters that XML can hold."""

Text = Annotated[str, Field(max_length=4096), AfterValidator(_is_text)]
"""As ``Line``, of several lines."""

Properties = Annotated[dict[Line, Text], Field(max_length=128)]


class Model(BaseModel):
    """Frozen, strict about types, and refusing fields that it does not know."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", defer_build=True)


class Flavor(Model):
    """The size of an instance, and what it asks of its host. Names as in Nova's ``Flavor`` object."""

    name: Line = ""
    vcpus: int = Field(ge=1, le=255)
    memory_mb: int = Field(ge=64, le=16 * 1024 * 1024, description="MiB")
    root_gb: int = Field(ge=1, le=64 * 1024, description="GiB")
    extra_specs: Properties = {}


class ImageReference(Model):
    """The image to boot, by its identifier in Glance."""

    id: Identifier


class NetworkKind(StrEnum):
    """How a NIC is connected: not at all, by QEMU's own user network, to a host bridge, to a libvirt network."""

    NONE = "none"
    USER = "user"
    BRIDGE = "bridge"
    NETWORK = "network"


class Address(Model):
    """What a guest configures a NIC with: ``interface`` is its address with the length of the prefix, 192.0.2.10/24."""

    interface: Annotated[IPv4Interface, Field(strict=False)]
    gateway: Annotated[IPv4Address, Field(strict=False)] | None = None
    dns: tuple[Annotated[IPv4Address, Field(strict=False)], ...] = Field(default=(), max_length=8, strict=False)


class Network(Model):
    """One NIC. ``source`` is the bridge's or the network's name; ``mac`` is lower case and unicast.

    A guest without an ``address`` asks by DHCP.
    """

    type: Annotated[NetworkKind, Field(strict=False)]
    source: str | None = Field(default=None, pattern=_DEVICE_PATTERN)
    mac: str | None = Field(default=None, pattern=_MAC_PATTERN)
    address: Address | None = None

    @model_validator(mode="after")
    def _source_belongs_to_kind(self) -> Self:
        named = self.type in {NetworkKind.BRIDGE, NetworkKind.NETWORK}
        if named and self.source is None:
            raise ValueError(f"type '{self.type}' needs the name of its {self.type} in 'source'")
        if not named and self.source is not None:
            raise ValueError(f"type '{self.type}' takes no 'source'")
        if not named and self.address is not None:
            raise ValueError(f"type '{self.type}' takes no 'address'")
        if self.type is NetworkKind.NONE and self.mac is not None:
            raise ValueError("type 'none' takes no 'mac'")
        return self


def derived_mac(uuid: UUID, index: int) -> str:
    """The address of the NIC at ``index`` of an instance that asks for none: always the same, under OpenStack's prefix.

    24 bits: two in 500 instances on one network meet with a chance of 1 %. Networks with more should name theirs.
    """
    digest = hashlib.sha256(uuid.bytes + index.to_bytes(2, "big")).digest()
    return "fa:16:3e:" + ":".join(f"{byte:02x}" for byte in digest[:3])


def is_base64(value: str) -> str:
    """``value``, where it is base64. Raises ``ValueError``."""
    try:
        base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"is not base64: {error}") from None
    return value


class Instance(Model):
    """What a tenant asked for: everything that a host must know to build the guest."""

    uuid: Identifier
    name: str = Field(min_length=1, max_length=255, pattern=NAME_PATTERN)
    hostname: str | None = Field(default=None, max_length=253, pattern=_HOST_NAME_PATTERN)
    project_id: Line = ""
    user_id: Line = ""
    flavor: Flavor
    image: ImageReference
    networks: tuple[Network, ...] = Field(default=(), max_length=8, strict=False)
    user_data: Annotated[str, Field(max_length=MAX_USER_DATA), AfterValidator(is_base64)] | None = None
    public_keys: Properties = {}
    metadata: Properties = {}
    auto_start: bool = Field(default=False, description="start it again after the host was restarted")

    @property
    def host_name(self) -> str:
        """The guest's own name: as asked, or made from ``name`` as Nova makes it."""
        if self.hostname is not None:
            return self.hostname
        kept = "".join(c if c.isascii() and (c.isalnum() or c in "-.") else "-" for c in self.name.lower())
        labels = filter(None, (label.strip("-") for label in kept.split(".")))
        return ".".join(labels)[:63].strip("-.") or f"server-{self.uuid}"


def needed_version(instance: Instance) -> str:
    """The oldest version that the schedulers must speak for ``instance``, dumped without its defaults.

    A host that is upgraded before them gets along with them that way, as oslo.messaging's version caps have it.
    """
    return "1.2" if any(network.address is not None for network in instance.networks) else "1.1"


HostName = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[A-Za-z0-9._-]+$")]
"""A compute host, as its configuration names it: part of the names of its queues."""


class Attempt(Model):
    """A host that could not build an instance, and what it said. ``code`` is that of its error."""

    host: HostName
    code: str = Field(max_length=255)
    message: str = Field(max_length=4096)


Tried = Annotated[tuple[Attempt, ...], Field(max_length=16, strict=False)]
"""The hosts that were tried for one request, in their order."""


class Scheduling(Model):
    """How a build came to its host: ``forced_host`` is the only one it may go to, ``tried`` are those that failed."""

    forced_host: HostName | None = None
    tried: Tried = ()


class BuildArguments(Model):
    """``build_and_run_instance``. One with ``scheduling`` came from a scheduler, which may try another host."""

    instance: Instance
    scheduling: Scheduling | None = None


class ScheduleArguments(Model):
    """``schedule_instance``. ``host`` is the only one to try, where an administrator named it.

    ``generation`` is what flavor and image together ask for; without it the flavor's own word counts, or plain SEV.
    """

    instance: Instance
    host: HostName | None = None
    generation: Annotated[Generation, Field(strict=False)] | None = None


class RescheduleArguments(ScheduleArguments):
    """``reschedule_instance``: the hosts in ``tried`` could not build it, the last one being who asks."""

    tried: Annotated[Tried, Field(min_length=1)]


class InstanceArguments(Model):
    """``terminate_instance``, ``start_instance``, ``stop_instance`` and ``get_instance``."""

    instance_uuid: Identifier


class RebootType(StrEnum):
    """``SOFT`` lets the guest shut itself down, within the host's time limit; ``HARD`` does not ask it."""

    SOFT = "SOFT"
    HARD = "HARD"


class RebootArguments(Model):
    """``reboot_instance``."""

    instance_uuid: Identifier
    reboot_type: Annotated[RebootType, Field(strict=False)] = RebootType.SOFT


class ConsoleArguments(Model):
    """``get_console_output``: the last ``length`` lines, or all that is kept."""

    instance_uuid: Identifier
    length: int | None = Field(default=None, ge=1, le=100_000)


RECONCILE_SECONDS: Final = 600.0
"""How long ``reconcile`` may take; all other methods answer within seconds."""


class ReconcileArguments(Model):
    """``reconcile``: compare Placement with what runs, and repair; or only tell."""

    dry_run: bool = False


class NoArguments(Model):
    """``list_instances`` and ``get_host_status``."""


Phase = Literal["start", "progress", "end", "error"]

M = TypeVar("M", bound=BaseModel)


def parse(model: type[M], arguments: Any) -> M:
    """Check ``arguments`` (decoded JSON) against ``model``.

    Raises ``InvalidRequest`` with the path of the first field at fault, the texts of all.
    """
    try:
        return model.model_validate(arguments)
    except ValidationError as error:
        faults = [
            (".".join(str(part) for part in fault["loc"])[:_MAX_PATH], fault)
            for fault in error.errors(include_url=False)
        ]
        first, fault = faults[0]
        texts = "; ".join(f"{path}: {_words(fault)}" for path, fault in faults[1:8])
        more = f"; also {texts}" if texts else ""
        raise InvalidRequest(
            f"{_words(fault)}{more}", field=first or "arguments", remedy=_remedy(fault["type"], model, first)
        ) from None


def _words(fault: Any) -> str:
    return str(fault["msg"]).removeprefix("Value error, ")


def _remedy(kind: str, model: type[BaseModel], path: str) -> str:
    match kind:
        case "missing":
            return f"add '{path}' to the request"
        case "extra_forbidden":
            return f"remove '{path}'; version {VERSION} of {model.__name__} does not know it"
        case _:
            return f"correct '{path}' and send the request again"
