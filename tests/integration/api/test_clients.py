"""Stock clients, and very many of them."""

import asyncio
import json
import sys
from pathlib import Path

import pytest

from tests.integration.api.conftest import Api

MANY = 1000


async def test_openstacksdk(api: Api) -> None:
    """A user's day with the library that openstack's command line is made of."""
    tenants = api.tenants
    who = tenants.credentials("bob")
    script = Path(__file__).with_name("stock_client.py")
    playing = asyncio.create_task(api.fleet.play())
    try:
        arguments = (str(who.auth_url), "bob", who.password.get_secret_value(), "blue")
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, str(script), *arguments, api.url, str(tenants.image), api.flavor),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        output, errors = await asyncio.wait_for(process.communicate(), 120)
    finally:
        playing.cancel()
        await asyncio.wait({playing})
    assert process.returncode == 0, errors.decode()[-3000:]
    assert json.loads(output) == {
        "flavors": True,
        "extra_specs": {"hw:mem_encryption": "true"},
        "status": "ACTIVE",
        "vm_state": "active",
        "metadata": {"made": "by-sdk"},
        "found": True,
        "listed": ["stock.example.com"],
        "console": "console of stock.example.com\n",
        "more": {"made": "by-sdk", "more": "yes"},
        "name": "renamed",
        "description": "by the SDK",
        "limits": 1,
        "zones": ["nova"],
        "left": [],
    }


@pytest.mark.parametrize("path", ["/servers/detail", "/flavors"])
async def test_very_many_at_once(api: Api, path: str) -> None:
    """A thousand requests at the same time are all answered."""
    await api.ask("GET", path)
    answers = await asyncio.gather(*(api.ask("GET", path) for _ in range(MANY)))
    assert [status for status, _ in answers] == [200] * MANY


async def test_many_creations_at_once(api: Api) -> None:
    """Fifty at once are fifty servers, each handed to the schedulers once."""
    answers = await asyncio.gather(*(api.ask("POST", "/servers", json=api.wanted(name=f"m{n}")) for n in range(50)))
    made = {body["server"]["id"] for status, body in answers if status == 202}
    assert len(made) == 50
    assert {str((await api.fleet.next_scheduled()).instance.uuid) for _ in range(50)} == made
