"""The stock ``openstack`` command, unmodified, on the whole cloud: API, scheduler, host and guest."""

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest

from tests.e2e.agent_process import AgentProcess
from tests.e2e.cloud import Cloud, run
from tests.e2e.shell import Shell
from tests.unit.api.test_public_keys import ED25519, FINGERPRINT

pytestmark = pytest.mark.asyncio(loop_scope="session")

_FLAVOR = "sev.small"


async def test_openstack_command(agent: AgentProcess, cloud: Cloud, tmp_path: Path) -> None:
    """A server's whole life by the stock command; strangers do not find it, readers do not touch it."""
    await agent.stop()
    await agent.start(builds__guest_shutdown_timeout=1)
    tenant, operator = Shell(cloud.lab, "red-member"), Shell(cloud.lab)
    (tmp_path / "key.pub").write_text(f"{ED25519} tenant\n")
    (tmp_path / "user-data").write_text("#!/bin/sh\necho hello\n")
    key = await tenant.json("keypair", "create", "--public-key", tmp_path / "key.pub", "laptop")
    assert key["fingerprint"] == FINGERPRINT

    wanted = ("--flavor", _FLAVOR, "--image", str(cloud.blank), "--key-name", "laptop", "--property", "role=web")
    more = ("--user-data", tmp_path / "user-data", "--wait")
    made = await tenant.json("server", "create", *wanted, *more, "web")
    assert (made["status"], made["key_name"], made["properties"]) == ("ACTIVE", "laptop", {"role": "web"})
    server = made["id"]

    stranger, reader = Shell(cloud.lab, "blue-member"), Shell(cloud.lab, "red-reader")
    seen, listed, looked, *refusals = await asyncio.gather(
        operator.json("server", "show", server),
        tenant.json("server", "list"),
        tenant.openstack("console", "log", "show", server),
        stranger.refused("server", "show", server),
        stranger.refused("server", "delete", "web"),
        reader.refused("server", "create", *wanted, "more"),
        reader.refused("server", "delete", server),
    )
    assert all("no server" in text.lower() for text in refusals[:2]), refusals
    assert all("403" in text for text in refusals[2:])
    assert seen["OS-EXT-SRV-ATTR:host"] == cloud.host.name
    assert [(each["Name"], each["Status"], each["Flavor"]) for each in listed] == [("web", "ACTIVE", _FLAVOR)]
    assert isinstance(looked, str)

    await tenant.openstack("server", "stop", server)
    await tenant.becomes(server, "SHUTOFF")
    assert "vm_state stopped" in await tenant.refused("server", "stop", server)
    await tenant.openstack("server", "start", server)
    await tenant.becomes(server, "ACTIVE")
    await tenant.openstack("server", "reboot", "--hard", "--wait", server)
    await tenant.openstack("server", "set", "--name", "renamed", "--property", "tier=1", server)
    await tenant.openstack("server", "unset", "--property", "role", server)
    shown = await tenant.json("server", "show", "renamed")
    assert (shown["status"], shown["properties"]) == ("ACTIVE", {"tier": "1"})

    await asyncio.gather(
        tenant.openstack("server", "delete", "--wait", server), tenant.openstack("keypair", "delete", "laptop")
    )
    assert await tenant.json("server", "list") == []
    assert await tenant.json("keypair", "list") == []


async def test_flavors_and_rest_by_command(agent: AgentProcess, cloud: Cloud) -> None:
    """Flavors with extra specs and access, and what else the command asks: zones, limits, quota."""
    operator, tenant = Shell(cloud.lab), Shell(cloud.lab, "red-member")
    size = ("--ram", "128", "--vcpus", "1", "--disk", "1")
    await operator.openstack(
        "flavor", "create", *size, "--private", "--property", "hw:mem_encryption=true", "--project", "red", "own"
    )
    own, others, zones, limits, quota = await asyncio.gather(
        tenant.json("flavor", "show", "own"),
        Shell(cloud.lab, "blue-member").json("flavor", "list"),
        tenant.json("availability", "zone", "list", "--compute"),
        tenant.json("limits", "show", "--absolute"),
        tenant.json("quota", "show", "--compute"),
    )
    assert own["properties"] == {"hw:mem_encryption": "true"}
    assert "own" not in [each["Name"] for each in others]
    assert [each["Zone Name"] for each in zones] == ["nova"]
    assert limits
    assert quota
    await operator.openstack("flavor", "unset", "--property", "hw:mem_encryption", "own")
    refusal = await tenant.refused("server", "create", "--flavor", "own", "--image", str(cloud.blank), "--wait", "x")
    assert "openstack flavor set --property hw:mem_encryption=true FLAVOR" in refusal
    assert "400" in refusal
    await operator.openstack("flavor", "delete", "own")


async def test_cloud_layer_of_openstacksdk(agent: AgentProcess, cloud: Cloud) -> None:
    """``create_server(wait=True)`` ends with a server that has an address, though nothing in the catalog is Neutron."""
    tenant = Shell(cloud.lab, "red-member")
    script = Path(__file__).with_name("sdk_client.py")
    environment = {**os.environ, **tenant.variables}
    result = await run(sys.executable, str(script), str(cloud.blank), _FLAVOR, environment=environment)
    assert result.status == 0, result.errors
    assert json.loads(result.output) == {
        "status": "ACTIVE",
        "addresses": [["10.0.2.15"]],
        "same": True,
        "reached_at": "10.0.2.15",
        "deleted": True,
        "left": [],
    }


async def test_preparation(agent: AgentProcess, cloud: Cloud) -> None:
    """A bare image and a new flavor are prepared by command, validated, and make a server: the verdicts agree."""
    operator, tenant = Shell(cloud.lab), Shell(cloud.lab, "red-member")
    image = await cloud.glance.get_image(cloud.blank)
    await cloud.glance.set_properties(image.id, {"hw_machine_type": "pc"})
    flavor = await operator.run("sev-agent", "flavor", "create", "own.sev", "--ram", "128", "--disk", "1")
    assert flavor.status == 0, flavor.errors
    before = await tenant.run("sev-agent", "validate", "--flavor", "own.sev", "--image", str(image.id))
    assert before.status == 1, before.errors
    assert "hw_machine_type=q35" in before.output
    refusal = await tenant.refused("server", "create", "--flavor", "own.sev", "--image", str(image.id), "x")
    assert "hw_machine_type=q35" in refusal

    tagged = await operator.run("sev-agent", "image", "tag", str(image.id), "--yes")
    assert tagged.status == 0, tagged.errors
    after = await tenant.run("sev-agent", "validate", "--flavor", "own.sev", "--image", str(image.id))
    assert after.status == 0, after.output
    await tenant.openstack("server", "create", "--flavor", "own.sev", "--image", str(image.id), "--wait", "prepared")
    await tenant.openstack("server", "delete", "--wait", "prepared")
    await operator.openstack("flavor", "delete", "own.sev")
