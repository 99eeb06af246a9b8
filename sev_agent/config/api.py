"""What the compute API is told."""

import ipaddress
import re
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network
from typing import Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, SecretStr, model_validator

from sev_agent.config.every_daemon import DaemonConfig, HttpSection, ServiceSection
from sev_agent.config.policy import PolicySection
from sev_agent.config.section import Seconds, Section, Url

_DATABASE_SCHEMES = ("sqlite:///", "postgresql://")
_POINT_TO_POINT = 31
"""The prefix length from which on every address is a host's. Source: RFC 3021."""

_UUID = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_OFFERED_NETWORK = rf"{_UUID}=(bridge|network):[A-Za-z0-9][A-Za-z0-9._-]{{0,63}}"


def _is_offered(text: str) -> str:
    if not re.fullmatch(_OFFERED_NETWORK, text):
        raise ValueError("must be UUID=bridge:NAME or UUID=network:NAME, the UUID in lower case")
    return text


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


class AddressPool(Section):
    """The addresses that servers get on the offered network of UUID ``network``: ``first`` to ``last``, both included.

    The guest configures itself with one of them, the length of ``cidr``, and ``gateway`` and ``dns`` where they are.
    """

    network: Annotated[str, Field(pattern=f"^{_UUID}$")]
    cidr: IPv4Network
    first: IPv4Address
    last: IPv4Address
    gateway: IPv4Address | None = None
    dns: Annotated[tuple[IPv4Address, ...], Field(max_length=8)] = ()

    @model_validator(mode="after")
    def _fits(self) -> Self:
        used = [self.first, self.last] + ([self.gateway] if self.gateway else [])
        ends = (
            {self.cidr.network_address, self.cidr.broadcast_address} if self.cidr.prefixlen < _POINT_TO_POINT else set()
        )
        if self.first > self.last or not all(each in self.cidr and each not in ends for each in used):
            raise ValueError("first, last and gateway must be addresses of hosts in cidr, and first not after last")
        return self

    def has(self, address: IPv4Address) -> bool:
        """Whether a server can have it."""
        return self.first <= address <= self.last and address != self.gateway

    def addresses(self) -> Iterator[IPv4Address]:
        """All that servers can have, in their order."""
        every = (IPv4Address(number) for number in range(int(self.first), int(self.last) + 1))
        return (address for address in every if self.has(address))


class NetworksSection(Section):
    """What a server's networks stand for on the hosts.

    ``auto`` is the kind of NIC that a request for any network gets; with "user" guests reach their host's loopback.
    ``offered`` are networks that can be asked for by UUID, each ``UUID=bridge:NAME`` or ``UUID=network:NAME``.
    ``pools`` are the addresses that servers have on them; without one, somebody else on that network gives them.
    """

    auto: Literal["user", "none"] = "none"
    offered: tuple[Annotated[str, AfterValidator(_is_offered)], ...] = ()
    pools: tuple[AddressPool, ...] = ()

    @model_validator(mode="after")
    def _one_pool_for_each(self) -> Self:
        offered = {entry.partition("=")[0] for entry in self.offered}
        pools = [pool.network for pool in self.pools]
        if not set(pools) <= offered or len(set(pools)) < len(pools):
            raise ValueError("each of pools must be for another one of the networks in offered")
        return self


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
    tokens: TokensSection = Field(default_factory=TokensSection)
    glance: ServiceSection = Field(default_factory=ServiceSection)
    quota: QuotaSection = Field(default_factory=QuotaSection)
    networks: NetworksSection = Field(default_factory=NetworksSection)
    encryption: PolicySection = Field(default_factory=PolicySection)
    upkeep: UpkeepSection = Field(default_factory=UpkeepSection)
    http: ApiHttpSection = Field(default_factory=ApiHttpSection)

    def missing(self) -> list[str]:
        faults = super().missing()
        if self.auth.type == "none" and not _is_loopback(self.api.host):
            faults.append(
                "api.host: without Keystone (auth.type 'none') everyone is an administrator, so it must be a loopback"
                " address such as 127.0.0.1"
            )
        if not self.database.url.get_secret_value().startswith(_DATABASE_SCHEMES):
            faults.append(f"database.url: must begin with one of {', '.join(_DATABASE_SCHEMES)}")
        return faults


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
