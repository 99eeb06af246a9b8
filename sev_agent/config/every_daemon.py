"""What every daemon is told: the services that it needs, where it tells of itself, and how it logs."""

from enum import StrEnum
from typing import Annotated, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, SecretStr

from sev_agent.config.section import Seconds, Section, Url


def _is_broker(url: SecretStr) -> SecretStr:
    # What is wrong is not quoted: there may be a password in it.
    try:
        parts = urlsplit(url.get_secret_value())
        usable = parts.scheme in {"amqp", "amqps"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise ValueError("must be amqp://USER:PASSWORD@HOST:PORT/VHOST, or amqps:// with TLS")
    return url


BrokerUrl = Annotated[SecretStr, AfterValidator(_is_broker)]


class MessagingSection(Section):
    """RabbitMQ. Times are seconds."""

    url: BrokerUrl = SecretStr("amqp://guest:guest@127.0.0.1:5672/")
    connect_timeout: Seconds = 10
    publish_timeout: Seconds = 10
    reconnect_max: Seconds = 5
    delivery_limit: int = Field(default=5, ge=1, le=1000)
    max_message_bytes: int = Field(default=1024 * 1024, ge=4096, le=16 * 1024 * 1024)


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
    """What ``load_as`` reads. ``reference`` is the file that documents every key."""

    reference: ClassVar[str]

    messaging: MessagingSection = Field(default_factory=MessagingSection)
    auth: AuthSection = Field(default_factory=AuthSection)
    http: HttpSection = Field(default_factory=HttpSection)
    log: LogSection = Field(default_factory=LogSection)

    def missing(self) -> list[str]:
        """What is wrong though each setting by itself is right, each fault with its path."""
        if self.auth.type == "password" and self.auth.auth_url is None:
            return ["auth.auth_url: needed where auth.type is 'password'"]
        return []
