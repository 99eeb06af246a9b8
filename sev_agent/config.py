"""Configuration of the daemons: a TOML file for each, overridden by the environment."""

import ipaddress
import os
import socket
import tomllib
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, ValidationError

from sev_agent import crash_points
from sev_agent.errors import SevAgentError
from sev_agent.sev.policy import FLAGS, PolicyBounds

ENVIRONMENT_PREFIX = "SEV_AGENT_"
_FOREIGN = frozenset({"SEV_AGENT_CONFIG", "SEV_AGENT_BROKER_URL", "SEV_AGENT_HOST"})
_FOREIGN_PREFIX = "SEV_AGENT_LAB"
"""Variables of the commands and of the lab, which a daemon may inherit from a shell that has them."""

_DELIMITER = "__"

_DATABASE_SCHEMES = ("sqlite:///", "postgresql://")
_OFFERED_NETWORK = r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}=(bridge|network):[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"


def _is_absolute(path: Path) -> Path:
    # They are told to libvirt and QEMU, which work in another directory.
    if not path.is_absolute():
        raise ValueError("must be an absolute path")
    return path


def _machine_name() -> str:
    return socket.gethostname()


AbsolutePath = Annotated[Path, AfterValidator(_is_absolute)]
Seconds = Annotated[float, Field(gt=0, le=86_400)]
Url = Annotated[str, Field(pattern=r"^https?://[^\s/]+(/\S*)?$")]


class ConfigurationError(SevAgentError):
    """The configuration cannot be used."""

    code = "configuration"


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class HostSection(Section):
    """Who this host is, and where its state lives."""

    name: str = Field(
        default_factory=_machine_name,
        validate_default=True,
        min_length=1,
        max_length=200,
        pattern=r"^[A-Za-z0-9._-]+$",
    )
    state_dir: AbsolutePath = Path("/var/lib/sev-agent")


class HypervisorSection(Section):
    """The libvirt daemon below. Times are seconds.

    ``threads`` is how many calls are made at once. It must stay below libvirtd's ``max_client_requests``, 5 by
    default: with that many in progress libvirtd reads nothing more, keepalive fails, and a healthy connection is lost.
    """

    uri: str = Field(default="qemu:///system", min_length=1)
    virt_type: Literal["kvm", "qemu"] = "kvm"
    emulator: AbsolutePath = Path("/usr/bin/qemu-system-x86_64")
    firmware_dirs: tuple[AbsolutePath, ...] = (Path("/etc/qemu/firmware"), Path("/usr/share/qemu/firmware"))
    keepalive_interval: int = Field(default=5, ge=1, le=60)
    keepalive_count: int = Field(default=3, ge=1, le=20)
    threads: int = Field(default=4, ge=2, le=64)
    connect_timeout: Seconds = 10
    call_timeout: Seconds = 60
    reconnect_max: Seconds = 5


def _are_flags(names: tuple[str, ...]) -> tuple[str, ...]:
    if unknown := sorted(set(names) - FLAGS):
        raise ValueError(f"no flag of a guest policy: {', '.join(unknown)}; there are {', '.join(sorted(FLAGS))}")
    return names


PolicyFlags = Annotated[tuple[str, ...], AfterValidator(_are_flags)]


class EncryptionSection(Section):
    """The SEV platform. ``platform_root`` is the root below which ``sys``, ``proc`` and ``dev`` are read.

    ``limit`` is the most SEV guests, ``es_limit`` the most guests of SEV-ES or SEV-SNP; ``watch_interval`` is seconds.
    """

    platform_root: AbsolutePath = Path("/")
    limit: int | None = Field(default=None, ge=1, le=100_000)
    es_limit: int | None = Field(default=None, ge=1, le=100_000)
    policy_required: PolicyFlags = ()
    policy_forbidden: PolicyFlags = ("migrate_ma",)
    memory_limit: Literal["none", "footprint"] = "none"
    watch_interval: Seconds = 10

    @property
    def policy_bounds(self) -> PolicyBounds:
        return PolicyBounds(required=frozenset(self.policy_required), forbidden=frozenset(self.policy_forbidden))


class MessagingSection(Section):
    """RabbitMQ. Times are seconds."""

    url: SecretStr = SecretStr("amqp://guest:guest@127.0.0.1:5672/")
    connect_timeout: Seconds = 10
    publish_timeout: Seconds = 10
    reconnect_max: Seconds = 5
    delivery_limit: int = Field(default=5, ge=1, le=1000)
    max_message_bytes: int = Field(default=1024 * 1024, ge=4096, le=16 * 1024 * 1024)


class NotificationsSection(Section):
    """How many notifications, and MiB of them, are kept while the broker is away."""

    max_count: int = Field(default=10_000, ge=100, le=1_000_000)
    max_mb: int = Field(default=16, ge=1, le=256)


class AuthSection(Section):
    """How to authenticate at OpenStack's services. ``none`` sends no token: for services on loopback only.

    A domain's ID, where one is given, stands in place of its name.
    ``interface`` and ``region_name`` choose among the catalog's endpoints; ``timeout`` is for one request to Keystone.
    """

    type: Literal["password", "none"] = "password"
    auth_url: Url | None = None
    username: str = ""
    password: SecretStr = SecretStr("")
    project_name: str = "service"
    user_domain_name: str = "Default"
    project_domain_name: str = "Default"
    user_domain_id: str | None = None
    project_domain_id: str | None = None
    region_name: str | None = None
    interface: Literal["public", "internal", "admin"] = "public"
    timeout: Seconds = 10


class ServiceSection(Section):
    """One OpenStack service: its address where the catalog should not be asked, and the time limit of a request."""

    endpoint: Url | None = None
    timeout: Seconds = 30


class PlacementSection(ServiceSection):
    """Placement, whose tree the host's is there, and how guests are counted in it.

    ``reserved_host_...`` is what this host does not offer: it is the host's own. ``guest_overhead_mb`` is what a guest
    takes beside its RAM, MiB. ``claim_grace`` is how long a scheduler's claim may wait for its request, seconds.
    """

    mode: Literal["standalone", "beside-nova"] = "standalone"
    nova_node: str | None = Field(default=None, min_length=1, max_length=200)
    guest_overhead_mb: int = Field(default=128, ge=0, le=65_536)
    claim_grace: Seconds = 300
    reserved_host_memory_mb: int = Field(default=512, ge=0)
    reserved_host_cpus: int = Field(default=0, ge=0)
    reserved_host_disk_gb: int = Field(default=0, ge=0)
    cpu_allocation_ratio: float = Field(default=4.0, gt=0, le=64)
    stopped_guests: Literal["release", "hold"] = "release"


class ImagesSection(Section):
    """The cache of images. Sizes in GiB and MiB, times in seconds."""

    cache_max_gb: int = Field(default=100, ge=1)
    download_timeout: Seconds = 3600
    idle_timeout: Seconds = 60
    inspect_timeout: Seconds = 30
    inspect_memory_mb: int = Field(default=1024, ge=128)


class BuildsSection(Section):
    """How much is done at once, and how long a stop waits for it (seconds)."""

    max_concurrent: int = Field(default=10, ge=1, le=256)
    max_power_changes: int = Field(default=50, ge=1, le=1000)
    stop_timeout: Seconds = 30
    guest_shutdown_timeout: Seconds = 60


class ReconcilerSection(Section):
    """The minutely comparison of what runs with what Placement counts (seconds)."""

    interval: Seconds = 60
    jitter: float = Field(default=5, ge=0, le=600)


class HealthSection(Section):
    """How often the services that are needed now and then are looked at (seconds)."""

    interval: Seconds = 60


class HttpSection(Section):
    """Where health, readiness and metrics are served."""

    host: str = "127.0.0.1"
    port: int = Field(default=9199, ge=0, le=65535)


class LogFormat(StrEnum):
    """``auto`` is colour on a terminal and JSON elsewhere."""

    AUTO = "auto"
    JSON = "json"
    CONSOLE = "console"


class LogSection(Section):
    level: Literal["debug", "info", "warning", "error"] = "info"
    format: LogFormat = LogFormat.AUTO


class DaemonConfig(Section):
    """What ``load`` reads: sections, and what one setting demands of another. ``reference`` documents every key."""

    reference: ClassVar[str]

    def missing(self) -> list[str]:
        """What is wrong though each setting by itself is right, each fault with its path."""
        return []


D = TypeVar("D", bound=DaemonConfig)


class AgentConfig(DaemonConfig):
    """Everything that ``sev-agent run`` is told. Read with ``load``."""

    reference: ClassVar[str] = "conf/sev-agent.toml"

    host: HostSection = Field(default_factory=HostSection)
    hypervisor: HypervisorSection = Field(default_factory=HypervisorSection)
    encryption: EncryptionSection = Field(default_factory=EncryptionSection)
    messaging: MessagingSection = Field(default_factory=MessagingSection)
    notifications: NotificationsSection = Field(default_factory=NotificationsSection)
    auth: AuthSection = Field(default_factory=AuthSection)
    glance: ServiceSection = Field(default_factory=ServiceSection)
    placement: PlacementSection = Field(default_factory=PlacementSection)
    images: ImagesSection = Field(default_factory=ImagesSection)
    builds: BuildsSection = Field(default_factory=BuildsSection)
    reconciler: ReconcilerSection = Field(default_factory=ReconcilerSection)
    health: HealthSection = Field(default_factory=HealthSection)
    http: HttpSection = Field(default_factory=HttpSection)
    log: LogSection = Field(default_factory=LogSection)

    def missing(self) -> list[str]:
        return _auth_url_missing(self.auth)


class ApiSection(Section):
    """Where the compute API listens, and what one request may be. Times are seconds.

    ``public_url`` begins the links in answers; without one it is as the request came. ``max_limit`` is how many servers
    or flavors one page has at most. A deleted server is remembered for ``deleted_retention``, as long as hosts remember
    deletions at least: what they tell of one late must not meet an API that knows nothing of it.
    """

    host: str = Field(default="127.0.0.1", min_length=1)
    port: int = Field(default=8774, ge=0, le=65535)
    public_url: Url | None = None
    availability_zone: str = Field(default="nova", min_length=1, max_length=255, pattern=r"^[A-Za-z0-9._-]+$")
    max_body_kb: int = Field(default=256, ge=96, le=16 * 1024)
    max_limit: int = Field(default=1000, ge=1, le=10_000)
    max_servers_per_request: int = Field(default=100, ge=1, le=1000)
    stop_timeout: Seconds = 10
    deleted_retention: Annotated[float, Field(ge=86_400, le=366 * 86_400)] = 86_400


class DatabaseSection(Section):
    """The SQL database: ``sqlite:///PATH`` (an absolute path, so four slashes) or ``postgresql://...``. Seconds."""

    url: SecretStr = Field(
        default=SecretStr("sqlite:////var/lib/sev-agent-api/api.sqlite"),
    )
    pool_size: int = Field(default=10, ge=1, le=200)
    timeout: Seconds = 30


class TokensSection(Section):
    """How long Keystone's word on a token is believed without asking again (seconds), and for how many tokens."""

    cache_seconds: Seconds = 60
    cache_size: int = Field(default=10_000, ge=1, le=1_000_000)


class QuotaSection(Section):
    """What each project may have at a time; -1 is without a limit. ``ram_mb`` is MiB."""

    servers: int = Field(default=10, ge=-1)
    vcpus: int = Field(default=20, ge=-1)
    ram_mb: int = Field(default=51_200, ge=-1)


class NetworksSection(Section):
    """What a server's networks stand for on the hosts.

    ``auto`` is the kind of NIC that a request for any network gets; with "user" guests reach their host's loopback.
    ``offered`` are networks that can be asked for by UUID, each ``UUID=bridge:NAME`` or ``UUID=network:NAME``.
    """

    auto: Literal["user", "none"] = "none"
    offered: tuple[Annotated[str, Field(pattern=_OFFERED_NETWORK)], ...] = ()


class UpkeepSection(Section):
    """The look after servers that are on their way for too long. Times are seconds.

    A server that waits for a host is scheduled again after ``schedule_deadline``, ``schedule_attempts`` times in all;
    one that a host works on is asked for after ``transition_deadline``, and given up after ``looks`` without an answer.
    One that is on no way is compared with its host's word each ``compare_interval``.
    """

    interval: Seconds = 10
    schedule_deadline: Seconds = 120
    schedule_attempts: int = Field(default=3, ge=1, le=100)
    transition_deadline: Seconds = 60
    looks: int = Field(default=5, ge=1, le=1000)
    call_timeout: Seconds = 10
    compare_interval: Seconds = 3600


class ApiHttpSection(HttpSection):
    """As the host daemon's, on a port of its own."""

    port: int = Field(default=9198, ge=0, le=65535)


class ApiConfig(DaemonConfig):
    """Everything that ``sev-agent api`` is told. Read with ``load_as``."""

    reference: ClassVar[str] = "conf/sev-agent-api.toml"

    api: ApiSection = Field(default_factory=ApiSection)
    database: DatabaseSection = Field(default_factory=DatabaseSection)
    messaging: MessagingSection = Field(default_factory=MessagingSection)
    auth: AuthSection = Field(default_factory=AuthSection)
    tokens: TokensSection = Field(default_factory=TokensSection)
    glance: ServiceSection = Field(default_factory=ServiceSection)
    quota: QuotaSection = Field(default_factory=QuotaSection)
    networks: NetworksSection = Field(default_factory=NetworksSection)
    upkeep: UpkeepSection = Field(default_factory=UpkeepSection)
    http: ApiHttpSection = Field(default_factory=ApiHttpSection)
    log: LogSection = Field(default_factory=LogSection)

    def missing(self) -> list[str]:
        faults = _auth_url_missing(self.auth)
        if self.auth.type == "none" and not _is_loopback(self.api.host):
            faults.append(
                "api.host: without Keystone (auth.type 'none') everyone is an administrator, so it must be a loopback"
                " address such as 127.0.0.1"
            )
        if not self.database.url.get_secret_value().startswith(_DATABASE_SCHEMES):
            faults.append(f"database.url: must begin with one of {', '.join(_DATABASE_SCHEMES)}")
        return faults


class SchedulerSection(Section):
    """Who this scheduler is, and how it chooses.

    ``strategy`` ``spread`` takes the host with the most free slots, ``pack`` the one with the fewest.
    ``max_candidates`` is how many hosts Placement is asked for at a time. Times are seconds.
    """

    name: str = Field(
        default_factory=_machine_name,
        validate_default=True,
        min_length=1,
        max_length=200,
        pattern=r"^[A-Za-z0-9._-]+$",
    )
    strategy: Literal["spread", "pack"] = "spread"
    max_candidates: int = Field(default=500, ge=1, le=10_000)
    max_concurrent: int = Field(default=32, ge=1, le=1000)
    stop_timeout: Seconds = 10


class SchedulerPlacementSection(ServiceSection):
    """Placement, and what a guest takes beside its RAM there: MiB, as the hosts count it."""

    guest_overhead_mb: int = Field(default=128, ge=0, le=65_536)


class SchedulerHttpSection(HttpSection):
    """As the host daemon's, on a port of its own."""

    port: int = Field(default=9197, ge=0, le=65535)


class SchedulerConfig(DaemonConfig):
    """Everything that ``sev-agent scheduler`` is told. Read with ``load_as``."""

    reference: ClassVar[str] = "conf/sev-agent-scheduler.toml"

    scheduler: SchedulerSection = Field(default_factory=SchedulerSection)
    messaging: MessagingSection = Field(default_factory=MessagingSection)
    auth: AuthSection = Field(default_factory=AuthSection)
    placement: SchedulerPlacementSection = Field(default_factory=SchedulerPlacementSection)
    http: SchedulerHttpSection = Field(default_factory=SchedulerHttpSection)
    log: LogSection = Field(default_factory=LogSection)

    def missing(self) -> list[str]:
        return _auth_url_missing(self.auth)


def load(path: Path, environment: Mapping[str, str] | None = None) -> AgentConfig:
    """The host daemon's configuration, read by ``load_as``."""
    return load_as(AgentConfig, path, environment)


def load_as(model: type[D], path: Path, environment: Mapping[str, str] | None = None) -> D:
    """Read a configuration from the TOML file ``path``, overridden by ``SEV_AGENT_<SECTION>__<KEY>`` variables.

    A variable's value is a text; where the setting is a list, it is one in TOML's spelling.
    Raises ``ConfigurationError`` that lists every fault with its path: an unreadable file, an unknown key or variable,
    a value of the wrong type or out of bounds, one that another value demands.
    """
    values = _read(path)
    for section in model.model_fields.keys() & {"host", "scheduler"}:
        # Without its section, a fault of the machine's own name would be told without its path, and alone.
        values.setdefault(section, {})
    faults = _override(values, os.environ if environment is None else environment, variables(model))
    try:
        config = model.model_validate(values)
    except ValidationError as error:
        faults += [_describe(fault) for fault in error.errors(include_url=False, include_input=False)]
    else:
        faults += config.missing()
        if not faults:
            return config
    raise ConfigurationError(
        f"{path} cannot be used:\n  " + "\n  ".join(faults),
        remedy=f"correct each line; {model.reference} documents every key",
    )


def variables(model: type[DaemonConfig] = AgentConfig) -> dict[str, tuple[str, str]]:
    """Every environment variable that ``load_as`` knows, with the section and the key that it sets."""
    return {
        f"{ENVIRONMENT_PREFIX}{section}{_DELIMITER}{key}".upper(): (section, key)
        for section, field in model.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
        for key in field.annotation.model_fields
    }


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(
            f"{path} cannot be read: {error.strerror}", remedy="give the daemon's file with --config"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} is not TOML: {error}", remedy="correct the syntax") from None


def _override(
    values: dict[str, Any], environment: Mapping[str, str], known: Mapping[str, tuple[str, str]]
) -> list[str]:
    """Put the environment's settings over those of the file, and tell what is wrong with them."""
    faults = []
    for name, text in sorted(environment.items()):
        if not name.startswith(ENVIRONMENT_PREFIX) or name in _FOREIGN or name.startswith(_FOREIGN_PREFIX):
            continue
        if name == crash_points.VARIABLE:
            faults += crash_points.faults(text)
            continue
        if name not in known:
            # Ignored, a mistyped variable would silently do nothing.
            faults.append(f"{name}: no such setting")
            continue
        section, key = known[name]
        present = values.setdefault(section, {})
        if isinstance(present, dict):
            present[key] = _list(text) if text.lstrip().startswith("[") else text
    return faults


def _list(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _auth_url_missing(auth: AuthSection) -> list[str]:
    if auth.type == "password" and auth.auth_url is None:
        return ["auth.auth_url: needed where auth.type is 'password'"]
    return []


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _describe(fault: Any) -> str:
    path = ".".join(str(part) for part in fault["loc"])
    text = "no such setting" if fault["type"] == "extra_forbidden" else fault["msg"]
    return f"{path}: {text}"
