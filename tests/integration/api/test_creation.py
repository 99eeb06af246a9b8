"""What a request for servers may say, what it costs, and what is left of one that fails."""

import asyncio
from typing import Any

from pydantic import SecretStr

from sev_agent.config import MessagingSection, NetworksSection, QuotaSection, ServiceSection
from tests.integration.api.conftest import Api, StartApi, new_flavor
from tests.rabbitmq import free_port

NETWORK = "f0e1d2c3-0000-4000-8000-000000000001"


async def refused(api: Api, *, status: int = 400, version: str = "2.61", user: str = "alice", **changes: Any) -> str:
    """The text of the refusal; nothing was created, or asked of anyone."""
    before = await api.ask("GET", "/servers", user=user)
    got, body = await api.ask("POST", "/servers", user=user, version=version, json=api.wanted(**changes))
    assert got == status, body
    assert await api.ask("GET", "/servers", user=user) == before
    assert api.fleet.scheduled.empty()
    ((_, fault),) = body.items()
    assert fault["code"] == status
    return str(fault["message"])


async def test_the_check(api: Api) -> None:
    """The flavor must ask for encryption, and the image support it; the text says what to set, and on what."""
    assert "image property 'hw_mem_encryption' is not set" in await refused(api, imageRef=str(api.tenants.plain))
    plain = await new_flavor(api, {})
    text = await refused(api, flavorRef=plain)
    assert "flavor property 'hw:mem_encryption' is not set, but must be true" in text
    assert "openstack flavor set --property hw:mem_encryption=true" in text
    opposite = await new_flavor(api, {"hw:mem_encryption": "false"})
    assert "the opposite" in await refused(api, flavorRef=opposite)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"flavorRef": "no-such-flavor"}, "Flavor no-such-flavor could not be found"),
    ({"imageRef": "00000000-0000-4000-8000-000000000000"}, "Can not find requested image"),
    ({"imageRef": "http://glance/images/1"}, "server.imageRef"),
    ({"name": ""}, "server.name"),
    ({"name": "x" * 256}, "server.name"),
    ({"name": None}, "server.name: is required"),
    ({"name": "a\tb"}, "server.name"),
    ({"user_data": "not base64!"}, "server.user_data"),
    ({"user_data": "A" * 65536}, "server.user_data"),
    ({"key_name": "no-such-key"}, "Invalid key_name provided"),
    ({"min_count": 0}, "server.min_count"),
    ({"min_count": -1}, "server.min_count"),
    ({"min_count": 3, "max_count": 2}, "min_count must be <= max_count"),
    ({"max_count": 10**9}, "at most 100 servers"),
    ({"max_count": 10**30}, "server.max_count"),
    ({"metadata": {"a": "x" * 256}}, "server.metadata.a"),
    ({"metadata": {"a/b": "x"}}, "server.metadata"),
    ({"networks": [{"uuid": NETWORK}]}, f"Network {NETWORK} could not be found"),
    ({"networks": [{"port": NETWORK}]}, "server.networks"),
    ({"networks": "some"}, "server.networks"),
    ({"networks": None}, "server.networks: is required"),
    ({"availability_zone": "mars"}, "availability zone is not available"),
    ({"personality": []}, "'personality' is not offered"),
    ({"adminPass": "secret"}, "'adminPass' is not offered"),
    ({"surprise": 1}, "server.surprise: is not known here"),
    ({"block_device_mapping_v2": [{"uuid": NETWORK, "source_type": "volume"}]}, "block_device_mapping_v2"),
    ({"security_groups": [{"name": "web"}]}, "security_groups"),
]


async def test_what_is_wrong_is_named(api: Api) -> None:
    """400, with what is wrong with which part; nothing is created."""
    for changes, text in WRONG:
        assert text in await refused(api, **changes), changes


async def test_what_older_microversions_do_not_have(api: Api) -> None:
    """A part that came later is refused, and before 2.37 networks need not be said."""
    assert "needs microversion 2.37" in await refused(api, version="2.36")
    text = await refused(api, version="2.18", networks=None, description="d")
    assert "server.description: needs microversion 2.19" in text
    status, _ = await api.ask("POST", "/servers", version="2.1", json=api.wanted(networks=None))
    assert status == 202
    assert (await api.fleet.next_scheduled()).instance.networks[0].type == "none"


async def test_any_name(api: Api) -> None:
    """A server may be called anything in one line; its host gets a name that is plain."""
    for name, plain in (("red's größe", "red-s gr--e"), ("<&>", "server"), ("a" * 255, "a" * 255), (" x ", "x")):
        server = await api.ask("POST", "/servers", json=api.wanted(name=name))
        assert (await api.fleet.next_scheduled()).instance.name == plain
        assert (await api.show(server[1]["server"]["id"]))["name"] == name.strip()


async def test_several_at_once(api: Api) -> None:
    """Each has its number in its name; they are one reservation."""
    asked = api.wanted(min_count=2, max_count=3, return_reservation_id=True)
    status, body = await api.ask("POST", "/servers", json=asked)
    assert status == 202
    names = {(await api.fleet.next_scheduled()).instance.name for _ in range(3)}
    assert names == {"guest-1", "guest-2", "guest-3"}
    _, found = await api.ask("GET", f"/servers?reservation_id={body['reservation_id']}")
    assert len(found["servers"]) == 3


async def test_a_host_by_name(api: Api) -> None:
    """For administrators alone."""
    assert "only an administrator" in await refused(api, status=403, availability_zone="nova:host-1")
    assert (await api.ask("POST", "/servers", user="admin", json=api.wanted(availability_zone="nova:h1")))[0] == 202
    assert (await api.fleet.next_scheduled()).host == "h1"
    assert "host" in await refused(api, user="admin", availability_zone="nova:a b")


async def test_networks_that_are_offered(start_api: StartApi) -> None:
    """A network's UUID stands for the bridge that the operator says."""
    api = await start_api(networks=NetworksSection(offered=(f"{NETWORK}=bridge:br-x",)))
    api.flavor = await new_flavor(api)
    await api.ask("POST", "/servers", json=api.wanted(networks=[{"uuid": NETWORK}]))
    (nic,) = (await api.fleet.next_scheduled()).instance.networks
    assert (nic.type, nic.source) == ("bridge", "br-x")
    listed = {"networks": [{"id": NETWORK, "label": "br-x"}]}
    assert await api.ask("GET", "/os-networks", version="2.35") == (200, listed)
    assert (await api.ask("GET", f"/os-networks/{NETWORK}", version="2.1"))[0] == 200
    assert (await api.ask("GET", "/os-networks/x", version="2.1"))[0] == 404
    assert (await api.ask("GET", "/os-networks", version="2.36"))[0] == 404


async def test_a_key_pair(api: Api) -> None:
    """Its public half travels to the host."""
    key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPVeGyK0qYmJ8oOAYbm2y8vF3Gs4qO5cJ1sVbmqHt4yC alice"
    status, body = await api.ask("POST", "/os-keypairs", json={"keypair": {"name": "mine", "public_key": key}})
    assert status in {200, 201}, body
    server = await api.ask("POST", "/servers", json=api.wanted(key_name="mine"))
    assert (await api.fleet.next_scheduled()).instance.public_keys["mine"].startswith("ssh-ed25519 ")
    assert (await api.show(server[1]["server"]["id"]))["key_name"] == "mine"
    assert "Invalid key_name" in await refused(api, user="bob", key_name="mine")


async def test_the_quota_holds_under_concurrency(start_api: StartApi) -> None:
    """Twenty requests at once at two processes: as many servers as the quota has, and not one more."""
    quota = QuotaSection(servers=5, vcpus=-1, ram_mb=-1)
    apis = [await start_api(quota=quota) for _ in range(2)]
    flavor = await new_flavor(apis[0])
    held = len((await apis[0].ask("GET", "/servers", user="bob"))[1]["servers"])
    for api in apis:
        api.flavor = flavor
    asked = [apis[n % 2].ask("POST", "/servers", user="bob", json=apis[0].wanted()) for n in range(20)]
    statuses = [status for status, _ in await asyncio.gather(*asked)]
    assert statuses.count(202) == max(0, 5 - held)
    assert statuses.count(403) == 20 - max(0, 5 - held)
    status, body = await apis[0].ask("POST", "/servers", user="bob", json=apis[0].wanted())
    assert status == 403
    assert "Quota exceeded for instances: Requested 1, but already used 5 of 5" in body["forbidden"]["message"]


async def test_every_quota_counts(start_api: StartApi) -> None:
    """Processors and RAM as well; all that would be passed is named."""
    api = await start_api(quota=QuotaSection(servers=-1, vcpus=1, ram_mb=600))
    api.flavor = await new_flavor(api, vcpus=2, ram=1024)
    text = await refused(api, status=403, user="admin")
    assert "cores: Requested 2" in text
    assert "ram: Requested 1024" in text


async def test_the_broker_is_away(start_api: StartApi) -> None:
    """503, and nothing is left: no server, no use of the quota."""
    api = await start_api()
    flavor = await new_flavor(api)
    away = MessagingSection(url=SecretStr(f"amqp://guest:guest@127.0.0.1:{free_port()}/"), publish_timeout=2)
    other = await start_api(messaging=away, needs=("database",))
    other.flavor = flavor
    limits = await api.ask("GET", "/limits")
    text = await refused(other, status=503, max_count=3)
    assert "RabbitMQ" in text
    assert await api.ask("GET", "/limits") == limits


async def test_glance_is_away(start_api: StartApi) -> None:
    """503, and nothing is created."""
    api = await start_api()
    other = await start_api(glance=ServiceSection(endpoint=f"http://127.0.0.1:{free_port()}", timeout=2))
    other.flavor = await new_flavor(api)
    assert "Glance" in await refused(other, status=503)
