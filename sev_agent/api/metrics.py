"""The API's metrics, for Prometheus."""

from prometheus_client import Counter, Histogram

from sev_agent.observe.metrics import ProcessMetrics

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 10)


class ApiMetrics(ProcessMetrics):
    """Every metric that the API itself counts."""

    def __init__(self) -> None:
        super().__init__()
        self.requests = Histogram(
            "sev_api_request_seconds",
            "Requests, by method, operation and status.",
            ("method", "operation", "status"),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.notifications = Counter(
            "sev_api_notifications",
            "Notifications heard, by what came of them: applied, stale, unknown, ignored.",
            ("outcome",),
            registry=self.registry,
        )
        self.upkeep = Counter(
            "sev_api_upkeep",
            "Servers that were looked after because they were on their way for too long, by what was done.",
            ("action",),
            registry=self.registry,
        )
