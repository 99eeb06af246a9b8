"""Placement and RabbitMQ can be used with the daemon's configuration."""

from functools import partial
from operator import attrgetter

from sev_agent.host.answers import NoAnswer, NotAsked, Service, ServiceAnswer
from sev_agent.host.check import Check, Finding, judged, skipped
from sev_agent.host.evidence import Evidence
from sev_agent.host.layer import Layer


def look(name: str, evidence: Evidence) -> Finding:
    expected = "an answer, with the configured user"
    answer: Service = attrgetter(name)(evidence)
    match answer:
        case NotAsked(reason=reason):
            return skipped(expected=expected, found=reason)
        case NoAnswer(source=source, fault=fault, remedy=remedy):
            return judged(passed=False, expected=expected, found=fault, source=source, remedy=remedy)
        case ServiceAnswer(source=source, found=found):
            return judged(passed=True, expected=expected, found=found, source=source, remedy="")


CHECKS = (
    Check(
        name="placement.reachable",
        title="Placement answers",
        layer=Layer.PLACEMENT,
        look=partial(look, "placement"),
    ),
    Check(
        name="rabbitmq.reachable",
        title="RabbitMQ answers",
        layer=Layer.RABBITMQ,
        look=partial(look, "rabbitmq"),
    ),
)
