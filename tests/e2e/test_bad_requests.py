"""Requests that can never succeed: refused with field and remedy, as call and as cast, and without a trace."""

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import pytest

from sev_agent.messaging.client import RemoteError
from tests.e2e.agent_process import AgentProcess
from tests.e2e.cloud import Cloud, DeadLetter
from tests.e2e.ear import Ear
from tests.e2e.waiting import eventually

pytestmark = pytest.mark.asyncio(loop_scope="session")

MISSING = object()


@dataclass(frozen=True)
class Bad:
    """One fault in an otherwise good request: ``value`` at ``path``, and the field that the error must name."""

    path: str
    value: Any
    field: str = ""

    @property
    def named(self) -> str:
        return self.field or "instance." + self.path.replace("__", ".")

    def applied(self, cloud: Cloud) -> dict[str, Any]:
        if self.value is not MISSING:
            return cloud.request(**{self.path: self.value})
        request = cloud.request()
        *parents, name = self.path.split("__")
        place = request
        for parent in parents:
            place = place[parent]
        del place[name]
        return request


BAD: Mapping[str, Bad] = {
    "unknown field": Bad("colour", "blue"),
    "unknown field of the flavor": Bad("flavor__swap_mb", 512),
    "no name": Bad("name", MISSING),
    "no image": Bad("image", MISSING),
    "no RAM": Bad("flavor__memory_mb", MISSING),
    "text for a number": Bad("flavor__vcpus", "two"),
    "number for a text": Bad("name", 7),
    "list for an object": Bad("flavor", []),
    "null": Bad("image", None),
    "bad UUID": Bad("uuid", "not-a-uuid"),
    "bad image UUID": Bad("image__id", "latest"),
    "zero RAM": Bad("flavor__memory_mb", 0),
    "absurd RAM": Bad("flavor__memory_mb", 10**12),
    "negative RAM": Bad("flavor__memory_mb", -256),
    "zero vCPUs": Bad("flavor__vcpus", 0),
    "absurd vCPUs": Bad("flavor__vcpus", 100_000),
    "zero disk": Bad("flavor__root_gb", 0),
    "absurd disk": Bad("flavor__root_gb", 10**9),
    "XML in the name": Bad("name", "<domain/>&amp;"),
    "shell in the name": Bad("name", "$(reboot); `id` | sh"),
    "newline in the name": Bad("name", "one\ntwo"),
    "path in the name": Bad("name", "../../etc/passwd"),
    "user data that is not base64": Bad("user_data", "#!/bin/sh"),
    "user data that is too large": Bad("user_data", base64.b64encode(bytes(60_000)).decode()),
    "bridge without a name": Bad("networks", [{"type": "bridge"}], field="instance.networks.0"),
}


@pytest.fixture(params=BAD)
def bad(request: pytest.FixtureRequest) -> Bad:
    return BAD[request.param]


async def test_bad_request_as_call(agent: AgentProcess, cloud: Cloud, ear: Ear, bad: Bad) -> None:
    """A call gets an error reply that names the field and the remedy; it is told and counted; nothing was begun."""
    before = await agent.metrics()
    request = bad.applied(cloud)
    with pytest.raises(RemoteError) as caught:
        await cloud.order("build_and_run_instance", instance=request)
    assert (caught.value.code, caught.value.field) == ("request.invalid", bad.named)
    assert caught.value.remedy
    assert bad.named in caught.value.remedy
    assert not caught.value.retryable
    told = await ear.hear(request["uuid"], "sev.instance.create.error")
    assert told.payload["state"] == "refused"
    await agent.counted(before, "sev_agent_builds_total", outcome="refused", code="request.invalid")
    await no_trace(cloud, request)


async def test_bad_request_as_cast(agent: AgentProcess, cloud: Cloud, ear: Ear, bad: Bad) -> None:
    """A cast gets an error notification, a dead letter with the reason, and is counted; nothing was begun."""
    before = await agent.metrics()
    request = bad.applied(cloud)
    await cloud.cast("build_and_run_instance", instance=request)
    told = await ear.hear(request["uuid"], "sev.instance.create.error")
    fault = told.payload["fault"]
    assert isinstance(fault, dict)
    assert (fault["code"], fault["field"]) == ("request.invalid", bad.named)
    assert fault["remedy"]
    letter = await dead_letter(cloud)
    assert letter.headers["x-sev-agent-code"] == "request.invalid"
    assert letter.headers["x-sev-agent-field"] == bad.named
    assert bad.named in letter.headers["x-sev-agent-reason"]
    await agent.counted(before, "sev_agent_builds_total", outcome="refused", code="request.invalid")
    await agent.counted(before, "sev_agent_rpc_requests_total", method="build_and_run_instance", outcome="invalid")
    await no_trace(cloud, request)


async def test_bad_delete_as_cast(agent: AgentProcess, cloud: Cloud, ear: Ear) -> None:
    """A delete of what is no UUID is told as its error, dead-lettered with the field, and counted."""
    before = await agent.metrics()
    await cloud.cast("terminate_instance", instance_uuid="not-a-uuid")
    told = await ear.hear("not-a-uuid", "sev.instance.delete.error")
    fault = told.payload["fault"]
    assert isinstance(fault, dict)
    assert (fault["code"], fault["field"]) == ("request.invalid", "instance_uuid")
    assert (await dead_letter(cloud)).headers["x-sev-agent-field"] == "instance_uuid"
    await agent.counted(before, "sev_agent_deletions_total", outcome="refused")


async def test_every_fault_is_told_at_once(agent: AgentProcess, cloud: Cloud) -> None:
    """A request with several faults is answered with all of them."""
    request = cloud.request(flavor__vcpus=0, flavor__memory_mb=1, name="<b>")
    with pytest.raises(RemoteError) as caught:
        await cloud.order("build_and_run_instance", instance=request)
    assert all(name in str(caught.value) for name in ("flavor.vcpus", "flavor.memory_mb", "instance.name"))


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"hello", id="text"),
        pytest.param(b"\xff\xfe\x00", id="no UTF-8"),
        pytest.param(b"", id="empty"),
        pytest.param(b"[]", id="no object"),
        pytest.param(b'{"oslo.version": "2.0", "oslo.message": "{"}', id="broken inside"),
        pytest.param(b'{"oslo.version": "2.0", "oslo.message": ' + b"[" * 100_000, id="deep"),
    ],
)
async def test_body_that_is_no_message(agent: AgentProcess, cloud: Cloud, body: bytes) -> None:
    """A body that is not JSON, or no envelope, is dead-lettered as it is with the reason, and counted."""
    before = await agent.metrics()
    await cloud.post(body)
    letter = await dead_letter(cloud)
    assert letter.body == body
    assert letter.headers["x-sev-agent-code"] == "message.malformed"
    assert letter.headers["x-sev-agent-reason"]
    await agent.counted(before, "sev_agent_rpc_requests_total", method="unknown", outcome="invalid")


async def test_message_that_is_too_large(agent: AgentProcess, cloud: Cloud) -> None:
    """A message over the limit is dead-lettered, and says which limit."""
    await cloud.post(json.dumps({"oslo.version": "2.0", "oslo.message": "x" * 1_100_000}).encode())
    letter = await dead_letter(cloud)
    assert letter.headers["x-sev-agent-code"] == "message.malformed"
    assert "messaging.max_message_bytes" in letter.headers["x-sev-agent-reason"]


async def test_unknown_method_as_call(agent: AgentProcess, cloud: Cloud) -> None:
    """A call of a method that does not exist is answered with those that do."""
    with pytest.raises(RemoteError) as caught:
        await cloud.order("explode_instance", instance_uuid=str(uuid4()))
    assert (caught.value.code, caught.value.field) == ("message.unknown_method", "method")
    assert "build_and_run_instance" in (caught.value.remedy or "")


async def test_unknown_method_as_cast(agent: AgentProcess, cloud: Cloud) -> None:
    """A cast of a method that does not exist is dead-lettered with the reason, and counted."""
    before = await agent.metrics()
    await cloud.cast("explode_instance", instance_uuid=str(uuid4()))
    letter = await dead_letter(cloud)
    assert letter.headers["x-sev-agent-code"] == "message.unknown_method"
    assert "explode_instance" in letter.headers["x-sev-agent-reason"]
    await agent.counted(before, "sev_agent_rpc_requests_total", method="unknown", outcome="invalid")


async def test_daemon_goes_on(agent: AgentProcess, cloud: Cloud) -> None:
    """After garbage of every kind a good build works."""
    for bad in BAD.values():
        await cloud.cast("build_and_run_instance", instance=bad.applied(cloud))
    for body in (b"", b"hello", b"[]"):
        await cloud.post(body)
    uuid = await cloud.build()
    assert await cloud.runs(uuid)


async def dead_letter(cloud: Cloud) -> DeadLetter:
    """The one message in the dead-letter queue, once it is there."""
    (letter,) = await eventually(cloud.dead_letters, within=10, what="a dead letter")
    return letter


async def no_trace(cloud: Cloud, request: Mapping[str, Any]) -> None:
    """Of a request that was never accepted there is not even a record."""
    try:
        uuid = UUID(str(request.get("uuid")))
    except ValueError:
        return
    assert await cloud.view(uuid) is None
    assert not cloud.files(uuid).directory.exists()
    assert await cloud.left(uuid) == []
