"""Configuration of the daemons: a TOML file for each, overridden by the environment."""

from sev_agent.config.agent import (
    AgentConfig,
    BuildsSection,
    EncryptionSection,
    HealthSection,
    HostSection,
    HypervisorSection,
    ImagesSection,
    NotificationsSection,
    PlacementSection,
    ReconcilerSection,
)
from sev_agent.config.api import (
    AddressPool,
    ApiConfig,
    ApiHttpSection,
    ApiSection,
    DatabaseSection,
    NetworksSection,
    QuotaSection,
    TokensSection,
    UpkeepSection,
)
from sev_agent.config.every_daemon import (
    AuthSection,
    DaemonConfig,
    HttpSection,
    LogFormat,
    LogSection,
    MessagingSection,
    ServiceSection,
)
from sev_agent.config.loading import ENVIRONMENT_PREFIX, ConfigurationError, load, load_as, variables
from sev_agent.config.policy import PolicySection
from sev_agent.config.scheduler import (
    SchedulerConfig,
    SchedulerHttpSection,
    SchedulerPlacementSection,
    SchedulerSection,
)
from sev_agent.config.section import Section

__all__ = [
    "ENVIRONMENT_PREFIX",
    "AddressPool",
    "AgentConfig",
    "ApiConfig",
    "ApiHttpSection",
    "ApiSection",
    "AuthSection",
    "BuildsSection",
    "ConfigurationError",
    "DaemonConfig",
    "DatabaseSection",
    "EncryptionSection",
    "HealthSection",
    "HostSection",
    "HttpSection",
    "HypervisorSection",
    "ImagesSection",
    "LogFormat",
    "LogSection",
    "MessagingSection",
    "NetworksSection",
    "NotificationsSection",
    "PlacementSection",
    "PolicySection",
    "QuotaSection",
    "ReconcilerSection",
    "SchedulerConfig",
    "SchedulerHttpSection",
    "SchedulerPlacementSection",
    "SchedulerSection",
    "Section",
    "ServiceSection",
    "TokensSection",
    "UpkeepSection",
    "load",
    "load_as",
    "variables",
]
