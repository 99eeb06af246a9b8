"""What the scheduler is told."""

from typing import ClassVar, Literal

from pydantic import Field

from sev_agent.config.every_daemon import DaemonConfig, HttpSection, ServiceSection
from sev_agent.config.section import MachineName, Seconds, Section, machine_name


class SchedulerSection(Section):
    """Who this scheduler is, and how it chooses.

    ``strategy`` ``spread`` takes the host with the most free slots, ``pack`` the one with the fewest.
    ``max_candidates`` is how many hosts Placement is asked for at a time. Times are seconds.
    """

    name: MachineName = Field(default_factory=machine_name, validate_default=True)
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
    placement: SchedulerPlacementSection = Field(default_factory=SchedulerPlacementSection)
    http: SchedulerHttpSection = Field(default_factory=SchedulerHttpSection)
