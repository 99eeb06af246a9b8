from typing import Any

import pytest

from sev_agent.api import keypairs
from tests.compute_api import InProcessApi
from tests.unit.api.test_public_keys import ED25519, FINGERPRINT


async def imported(api: InProcessApi, name: str, **options: Any) -> tuple[int, Any]:
    body = {"keypair": {"name": name, "public_key": f"{ED25519} alice@example"}}
    return await api.ask("POST", "/os-keypairs", json=body, **options)


async def test_life_of_a_key(api: InProcessApi) -> None:
    """A public key is imported, shown, listed and deleted."""
    status, made = await imported(api, "laptop", version="2.2")
    assert status == 201
    assert made == {
        "keypair": {
            "name": "laptop",
            "public_key": f"{ED25519} alice@example",
            "fingerprint": FINGERPRINT,
            "type": "ssh",
            "user_id": "alice",
        }
    }
    status, shown = await api.ask("GET", "/os-keypairs/laptop")
    assert (status, shown["keypair"]["fingerprint"]) == (200, FINGERPRINT)
    assert await api.ask("GET", "/os-keypairs", version="2.2") == (
        200,
        {"keypairs": [{"keypair": {key: value for key, value in made["keypair"].items() if key != "user_id"}}]},
    )
    assert await api.ask("DELETE", "/os-keypairs/laptop", version="2.2") == (204, None)
    assert await api.ask("GET", "/os-keypairs") == (200, {"keypairs": []})


async def test_the_oldest_microversion(api: InProcessApi) -> None:
    """Before 2.2 statuses are others, and nothing tells the type."""
    status, made = await imported(api, "laptop")
    assert status == 200
    assert "type" not in made["keypair"]
    assert (await api.ask("DELETE", "/os-keypairs/laptop"))[0] == 202


async def test_name_is_taken(api: InProcessApi) -> None:
    """A name can be used once by each user."""
    await imported(api, "laptop")
    status, fault = await imported(api, "laptop")
    assert status == 409
    assert fault == {"conflictingRequest": {"code": 409, "message": "Key pair 'laptop' already exists."}}
    assert (await imported(api, "laptop", user="bob"))[0] == 200


async def test_keys_of_others(api: InProcessApi) -> None:
    """A user's keys are not there for others, whatever project they share; administrators may ask by the user."""
    await imported(api, "laptop")
    assert await api.ask("GET", "/os-keypairs", user="bob", roles="member") == (200, {"keypairs": []})
    assert (await api.ask("GET", "/os-keypairs/laptop", user="bob", roles="member"))[0] == 404
    assert (await api.ask("DELETE", "/os-keypairs/laptop", user="bob", roles="member"))[0] == 404
    for method, path in (("GET", "/os-keypairs"), ("GET", "/os-keypairs/laptop"), ("DELETE", "/os-keypairs/laptop")):
        assert (await api.ask(method, path, params={"user_id": "alice"}, user="bob", roles="member"))[0] == 403
    assert (await api.ask("DELETE", "/os-keypairs/laptop", params={"user_id": "alice"}, user="bob"))[0] == 202


async def test_reader(api: InProcessApi) -> None:
    """A reader sees keys, and neither imports nor deletes one."""
    await imported(api, "laptop")
    assert (await api.ask("GET", "/os-keypairs/laptop", roles="reader"))[0] == 200
    assert (await imported(api, "other", roles="reader"))[0] == 403
    assert (await api.ask("DELETE", "/os-keypairs/laptop", roles="reader"))[0] == 403


@pytest.mark.parametrize(
    ("keypair", "text"),
    [
        ({"name": "laptop"}, "this service generates no keys"),
        ({"name": "laptop", "public_key": "ssh-rsa AAAA"}, "Keypair data is invalid"),
        ({"name": "laptop", "public_key": ED25519, "type": "x509"}, "keypair.type"),
        ({"name": "laptop", "public_key": ED25519, "type": "pgp"}, "keypair.type"),
        ({"name": "", "public_key": ED25519}, "keypair.name"),
        ({"name": "a/b", "public_key": ED25519}, "keypair.name"),
        ({"name": " laptop", "public_key": ED25519}, "keypair.name"),
        ({"name": "x" * 256, "public_key": ED25519}, "keypair.name"),
        ({"name": 1, "public_key": ED25519}, "keypair.name"),
        ({"name": "laptop", "public_key": ED25519, "colour": "red"}, "keypair.colour: is not known here"),
        ({"public_key": ED25519}, "keypair.name: is required"),
    ],
)
async def test_bad_imports(api: InProcessApi, keypair: dict[str, Any], text: str) -> None:
    """What cannot be imported is refused with the field and the reason, and nothing is kept of it."""
    status, fault = await api.ask("POST", "/os-keypairs", json={"keypair": keypair})
    assert status == 400
    assert text in fault["badRequest"]["message"]
    assert await api.ask("GET", "/os-keypairs") == (200, {"keypairs": []})


async def test_pages(api: InProcessApi) -> None:
    """Since 2.35 a list has pages, each with the link to the next; a marker that is gone is refused."""
    for name in ("a", "b", "c"):
        await imported(api, name)
    status, page = await api.ask("GET", "/os-keypairs", params={"limit": "2"}, version="2.35")
    assert status == 200
    assert [each["keypair"]["name"] for each in page["keypairs"]] == ["a", "b"]
    assert "marker=b" in page["keypairs_links"][0]["href"]
    _, rest = await api.ask("GET", "/os-keypairs", params={"marker": "b"}, version="2.35")
    assert [each["keypair"]["name"] for each in rest["keypairs"]] == ["c"]
    assert (await api.ask("GET", "/os-keypairs", params={"marker": "z"}, version="2.35"))[0] == 400
    _, everything = await api.ask("GET", "/os-keypairs", params={"limit": "1"}, version="2.34")
    assert len(everything["keypairs"]) == 3


async def test_quota(api: InProcessApi, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user can have so many keys, and no more."""
    monkeypatch.setattr(keypairs, "MAX_KEYPAIRS", 1)
    assert (await imported(api, "a"))[0] == 200
    status, fault = await imported(api, "b")
    assert status == 403
    assert "Quota exceeded" in fault["forbidden"]["message"]
    assert (await imported(api, "b", user="bob"))[0] == 200
