"""The scheduler's metrics, for Prometheus."""

from prometheus_client import Counter, Histogram

from sev_agent.observe.metrics import ProcessMetrics


class SchedulerMetrics(ProcessMetrics):
    """Every metric that a scheduler counts."""

    def __init__(self) -> None:
        super().__init__()
        self.decisions = Counter(
            "sev_agent_scheduler_decisions",
            "Requests that were decided, by outcome (placed, error) and, for errors, by code.",
            ("outcome", "code"),
            registry=self.registry,
        )
        self.decision_seconds = Histogram(
            "sev_agent_scheduler_decision_seconds",
            "Seconds from a request's arrival here to the host that was told, or to the refusal.",
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 15, 60),
            registry=self.registry,
        )
        self.claims = Counter(
            "sev_agent_scheduler_claims",
            "Attempts to claim, by outcome: claimed, held (by the same instance), full, gone, unroutable.",
            ("outcome",),
            registry=self.registry,
        )
        self.requests = Counter(
            "sev_agent_rpc_requests",
            "RPC requests, by method and outcome.",
            ("method", "outcome"),
            registry=self.registry,
        )
