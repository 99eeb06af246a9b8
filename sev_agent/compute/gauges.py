"""What of the daemon's parts is measured when somebody asks."""

from sev_agent.compute.accounting import Accounting
from sev_agent.compute.host_watch import ReadinessReport
from sev_agent.compute.instances import Instances
from sev_agent.compute.outbox import Outbox
from sev_agent.compute.status import HostStatus
from sev_agent.hypervisor.connection import Hypervisor
from sev_agent.observe.health import Health
from sev_agent.observe.metrics import Metrics


def observe(
    metrics: Metrics,
    *,
    health: Health,
    status: HostStatus,
    readiness: ReadinessReport,
    accounting: Accounting,
    instances: Instances,
    outbox: Outbox,
    hypervisor: Hypervisor,
) -> None:
    """Have ``metrics`` read each part at every scrape."""
    metrics.observe_health(health)
    metrics.observe(
        "sev_agent_slots_total",
        "Encryption slots of this host, by generation.",
        ("generation",),
        status.slots_total,
    )
    metrics.observe(
        "sev_agent_slots_used",
        "Encryption slots in use, as last written to or read from Placement, by generation.",
        ("generation",),
        accounting.slots_used,
    )
    metrics.observe(
        "sev_agent_stranded_guests",
        "Guests of generations that this host cannot run any more, by generation.",
        ("generation",),
        readiness.stranded_counts,
    )
    metrics.observe(
        "sev_agent_domains",
        "Domains that libvirt has, as last seen, by state and by whether they are encrypted.",
        ("state", "encrypted"),
        status.domains,
    )
    metrics.observe(
        "sev_agent_instances",
        "Instances of this host, by state.",
        ("state",),
        instances.by_state,
    )
    metrics.observe(
        "sev_agent_libvirt_calls_overdue",
        "Calls to libvirt that are past their time limit and have not returned.",
        (),
        lambda: [((), float(hypervisor.overdue_calls))],
    )
    metrics.observe(
        "sev_agent_notifications_waiting",
        "Notifications that the broker has not taken yet.",
        (),
        lambda: [((), float(outbox.waiting))],
    )
