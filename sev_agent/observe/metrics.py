"""The daemon's metrics, for Prometheus."""

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from sev_agent.observe.health import Health

_STEP_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 15, 60, 300, 1800)

Labelled = Iterable[tuple[tuple[str, ...], float]]
"""Values of one metric by their label values."""


class ProcessMetrics:
    """The metrics of every daemon: its process, its health, and its requests to OpenStack.

    What its parts hold is read by ``observe`` when it is asked for.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self.registry)
        self.openstack_seconds = Histogram(
            "sev_agent_openstack_request_seconds",
            "Requests to OpenStack services, by service, method and status.",
            ("service", "method", "status"),
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5, 30),
            registry=self.registry,
        )

    def count_request(self, service: str, method: str, status: int, seconds: float) -> None:
        """A ``RequestObserver`` of the requests to OpenStack's services."""
        self.openstack_seconds.labels(service, method, str(status)).observe(seconds)

    def observe_health(self, health: Health) -> None:
        """Offer what ``/readyz`` says."""
        self.observe(
            "sev_agent_dependency_up",
            "Whether what the daemon leans on can be used.",
            ("dependency",),
            lambda: [((name.value,), float(condition.up)) for name, condition in health.conditions.items()],
        )
        self.observe("sev_agent_ready", "Whether /readyz says yes.", (), lambda: [((), float(health.is_ready))])

    def observe(self, name: str, text: str, labels: tuple[str, ...], read: Callable[[], Labelled]) -> None:
        """Offer a gauge whose values are read at the moment that somebody asks for them."""
        self.registry.register(_Observed(name, text, labels, read))


class Metrics(ProcessMetrics):
    """Every metric that the host daemon itself counts."""

    def __init__(self) -> None:
        super().__init__()
        self.builds = Counter(
            "sev_agent_builds",
            "Builds that ended, by outcome and, for failures, by error code.",
            ("outcome", "code"),
            registry=self.registry,
        )
        self.build_seconds = Histogram(
            "sev_agent_build_seconds",
            "Seconds from acceptance to the running guest.",
            buckets=_STEP_BUCKETS,
            registry=self.registry,
        )
        self.step_seconds = Histogram(
            "sev_agent_build_step_seconds",
            "Seconds that each step of a build, or of its undoing, took.",
            ("step",),
            buckets=_STEP_BUCKETS,
            registry=self.registry,
        )
        self.deletions = Counter(
            "sev_agent_deletions",
            "Deletions that ended, that could not be done for a new reason, or were refused, by outcome.",
            ("outcome",),
            registry=self.registry,
        )
        self.power_changes = Counter(
            "sev_agent_power_changes",
            "Starts, stops and reboots that ended, by outcome and, for failures, by error code.",
            ("action", "outcome", "code"),
            registry=self.registry,
        )
        self.notifications_dropped = Counter(
            "sev_agent_notifications_dropped",
            "Notifications dropped because too many waited for the broker, by event type.",
            ("event_type",),
            registry=self.registry,
        )
        self.requests = Counter(
            "sev_agent_rpc_requests",
            "RPC requests, by method and outcome.",
            ("method", "outcome"),
            registry=self.registry,
        )
        self.reconciliations = Counter(
            "sev_agent_reconciliations",
            "Reconciliations, by outcome: clean, repaired, failed.",
            ("outcome",),
            registry=self.registry,
        )
        self.differences = Counter(
            "sev_agent_drift",
            "Differences between Placement and this host that were found, by kind and by whether they were repaired.",
            ("kind", "repaired"),
            registry=self.registry,
        )
        self.reconciled_at = Gauge(
            "sev_agent_last_reconciliation_timestamp_seconds",
            "When the last reconciliation ended well.",
            registry=self.registry,
        )


class _Observed(Collector):
    def __init__(self, name: str, text: str, labels: tuple[str, ...], read: Callable[[], Labelled]) -> None:
        self._name, self._text, self._labels, self._read = name, text, labels, read

    def describe(self) -> Iterable[Metric]:
        return [GaugeMetricFamily(self._name, self._text, labels=self._labels)]

    def collect(self) -> Iterable[Metric]:
        family = GaugeMetricFamily(self._name, self._text, labels=self._labels)
        for values, value in self._read():
            family.add_metric(values, value)
        return [family]
