"""Requests that were never accepted: told as errors of what they would have been, and counted."""

from typing import Final

from sev_agent.compute.announcements import Announcements
from sev_agent.errors import SevAgentError
from sev_agent.messaging.envelope import RequestContext
from sev_agent.messaging.wire_json import Arguments
from sev_agent.observe.metrics import Metrics

_ACTIONS: Final = {
    "build_and_run_instance": "create",
    "terminate_instance": "delete",
    "start_instance": "start",
    "stop_instance": "stop",
    "reboot_instance": "reboot",
}
"""What a refused request of each method would have been, in notifications."""

_MAX_TOLD: Final = 64
"""Characters of what stands in a refused request in place of a UUID, which may be anything."""


class RefusedRequests:
    """Tells and counts them; a question that is refused is its asker's matter alone."""

    def __init__(self, announcements: Announcements, metrics: Metrics) -> None:
        self._announcements = announcements
        self._metrics = metrics

    async def tell(
        self, context: RequestContext, method: str, arguments: Arguments | None, error: SevAgentError
    ) -> None:
        """Take what is known of a request that ``error`` refused. Returns once the notification is safe."""
        if (action := _ACTIONS.get(method)) is None:
            return
        await self._announcements.refused(_named(arguments or {}), context.request_id, error, action=action)
        match action:
            case "create":
                self._metrics.builds.labels("refused", error.code).inc()
            case "delete":
                self._metrics.deletions.labels("refused").inc()
            case _:
                self._metrics.power_changes.labels(action, "refused", error.code).inc()


def _named(arguments: Arguments) -> str | None:
    """What the request gave for the instance's UUID."""
    instance = arguments.get("instance")
    uuid = instance.get("uuid") if isinstance(instance, dict) else arguments.get("instance_uuid")
    return uuid[:_MAX_TOLD] if isinstance(uuid, str) else None
