"""A part that is away is a 503 that says which, and leaves nothing half made."""

import pytest

from sev_agent.api.database import DatabaseUnavailable
from sev_agent.errors import SevAgentError, Unavailable
from sev_agent.messaging.broker import Unroutable
from sev_agent.openstack.exchange import ServiceUnavailable
from sev_agent.openstack.identity import AuthenticationFailed
from tests.compute_api import InProcessApi
from tests.unit.api.requests import make_flavor, make_image, message, nothing_is_there, server


class BrokerAway(Unavailable):
    code = "broker.unavailable"


async def test_no_broker(api: InProcessApi) -> None:
    """A server that cannot be asked of a scheduler is a 503, and is not half made."""
    await make_flavor(api)
    image = make_image(api)
    api.sent.fault = BrokerAway("RabbitMQ is away")
    status, answer = await api.ask("POST", "/servers", json=server(image, max_count=3))
    assert status == 503
    assert "RabbitMQ" in message(503, answer)
    assert await nothing_is_there(api)
    _, limits = await api.ask("GET", "/limits")
    assert limits["limits"]["absolute"]["totalInstancesUsed"] == 0


@pytest.mark.parametrize(
    ("fault", "part"),
    [
        (BrokerAway("RabbitMQ at secret.example:5671 refuses"), "RabbitMQ"),
        (DatabaseUnavailable("the database at secret.example cannot be used", remedy="secret"), "The database"),
        (ServiceUnavailable("is down", service="glance", url="http://secret.example"), "Glance"),
        (AuthenticationFailed("keystone at http://secret.example does not accept user secret"), "Keystone"),
        (Unavailable("secret"), "A part of this service"),
        (Unroutable("secret"), "The scheduler"),
    ],
)
async def test_what_tenants_hear_of_a_part_that_is_away(api: InProcessApi, fault: SevAgentError, part: str) -> None:
    """Which one it is; administrators hear the whole reason."""
    await make_flavor(api)
    body = server(make_image(api))
    api.sent.fault = fault
    status, answer = await api.ask("POST", "/servers", json=body, roles="member")
    text = "cannot be used at the moment. Ask again later, or tell the operator the id of this request."
    assert (status, message(status, answer)) == (503, f"{part} {text}")
    status, answer = await api.ask("POST", "/servers", json=body)
    assert (status, text in message(status, answer)) == (503, False)


async def test_no_scheduler_has_ever_run(api: InProcessApi) -> None:
    """Without the schedulers' queue a server is a 503 that says what to start, and is not half made."""
    await make_flavor(api)
    api.sent.fault = Unroutable("no queue takes it")
    status, answer = await api.ask("POST", "/servers", json=server(make_image(api)))
    assert status == 503
    assert "no scheduler has ever run" in message(503, answer)
    assert "sev-agent scheduler" in message(503, answer)
    assert await nothing_is_there(api)
