"""Who may do what: real tokens of a real Keystone."""

from aiohttp import ClientSession

from sev_agent.config import ApiSection, AuthSection, TokensSection
from sev_agent.lab.accounts import service_user
from sev_agent.openstack.identity import KeystoneIdentity
from tests.integration.api.conftest import Api, StartApi
from tests.rabbitmq import free_port


async def test_a_reader_cannot_create(api: Api) -> None:
    """403, and nothing is created; it may look."""
    status, body = await api.ask("POST", "/servers", user="rita", json=api.wanted())
    assert (status, body["forbidden"]["code"]) == (403, 403)
    assert "role 'member'" in body["forbidden"]["message"]
    server = await api.create()
    assert (await api.ask("GET", f"/servers/{server}", user="rita"))[0] == 200
    for method, path, what in (
        ("DELETE", "", None),
        ("PUT", "", {"server": {"name": "x"}}),
        ("POST", "/action", {"os-stop": None}),
        ("POST", "/metadata", {"metadata": {}}),
    ):
        assert (await api.ask(method, f"/servers/{server}{path}", user="rita", json=what))[0] == 403


async def test_a_user_without_a_known_role(api: Api) -> None:
    """Keystone knows the user and the project, and that is not enough."""
    assert (await api.ask("GET", "/servers", user="nobody"))[0] == 403


async def test_a_member_makes_no_flavors(api: Api) -> None:
    """Flavors are the administrator's."""
    flavor = {"flavor": {"name": "x", "ram": 512, "vcpus": 1, "disk": 1}}
    assert (await api.ask("POST", "/flavors", json=flavor))[0] == 403
    assert (await api.ask("DELETE", f"/flavors/{api.flavor}"))[0] == 403


QUESTIONS: list[tuple[str, str, object]] = [
    ("GET", "", None),
    ("PUT", "", {"server": {"name": "mine"}}),
    ("DELETE", "", None),
    ("POST", "/action", {"os-stop": None}),
    ("POST", "/action", {"os-getConsoleOutput": {}}),
    ("GET", "/metadata", None),
    ("POST", "/metadata", {"metadata": {"a": "b"}}),
    ("PUT", "/metadata/a", {"meta": {"a": "b"}}),
    ("DELETE", "/metadata/a", None),
    ("GET", "/os-interface", None),
]


async def test_another_projects_server_is_not_there(api: Api) -> None:
    """404, the same as for one that does not exist, whatever is asked of it."""
    server = await api.created()
    fault = {"itemNotFound": {"code": 404, "message": f"Instance {server} could not be found."}}
    for method, path, what in QUESTIONS:
        assert await api.ask(method, f"/servers/{server}{path}", user="bob", json=what) == (404, fault), (method, path)
    assert (await api.show(server))["name"] == "guest"


async def test_lists_are_of_ones_own_project(api: Api) -> None:
    """Tenants see their own; administrators see all who ask for all."""
    server = await api.create()
    listed = {user: (await api.ask("GET", "/servers", user=user))[1]["servers"] for user in ("alice", "bob", "admin")}
    assert server in [each["id"] for each in listed["alice"]]
    assert server not in [each["id"] for each in listed["bob"] + listed["admin"]]
    everything = (await api.ask("GET", "/servers?all_tenants=1", user="admin"))[1]["servers"]
    assert server in [each["id"] for each in everything]
    assert (await api.ask("GET", "/servers?all_tenants=1"))[0] == 403
    assert server not in str(await api.ask("GET", f"/servers?uuid={server}", user="bob"))
    assert (await api.ask("GET", f"/servers?marker={server}", user="bob"))[0] == 400


async def test_the_project_in_the_path(api: Api) -> None:
    """One's own is accepted, another's is not."""
    own, other = api.tenants.projects["red"], api.tenants.projects["blue"]
    assert (await api.ask("GET", f"/{own}/servers"))[0] == 200
    status, body = await api.ask("GET", f"/{other}/servers")
    assert status == 400
    assert "doesn't match" in body["badRequest"]["message"]


async def test_a_wrong_token(api: Api) -> None:
    """401 with Nova's body, and where to get a right one."""
    for token in ("", "wrong", "gAAAAABm" + "x" * 180, "x" * 8100):
        async with api.session.get(f"{api.url}/servers", headers={"X-Auth-Token": token}) as answer:
            assert answer.status == 401
            assert answer.headers["WWW-Authenticate"].startswith("Keystone")
            assert (await answer.json())["unauthorized"]["code"] == 401


async def test_a_token_that_is_revoked(start_api: StartApi) -> None:
    """It works no longer than the time for which Keystone's word is believed."""
    api = await start_api(tokens=TokensSection(cache_seconds=0.001))
    token = await api.tenants.token(api.session, "alice")
    api.tokens["alice"] = token
    assert (await api.ask("GET", "/servers"))[0] == 200
    url = f"{api.tenants.cloud.keystone_url}/v3/auth/tokens"
    async with api.session.delete(url, headers={"X-Auth-Token": token, "X-Subject-Token": token}) as answer:
        assert answer.status == 204
    assert (await api.ask("GET", "/servers"))[0] == 401


async def test_an_unscoped_token(api: Api) -> None:
    """Without a project there is nothing to look at."""
    user = {
        "name": "alice",
        "domain": {"id": "default"},
        "password": api.tenants.credentials("alice").password.get_secret_value(),
    }
    asked = {"auth": {"identity": {"methods": ["password"], "password": {"user": user}}, "scope": "unscoped"}}
    async with api.session.post(f"{api.tenants.cloud.keystone_url}/v3/auth/tokens", json=asked) as answer:
        api.tokens["unscoped"] = answer.headers["X-Subject-Token"]
    assert (await api.ask("GET", "/servers", user="unscoped"))[0] == 403


async def test_keystone_is_away(start_api: StartApi, session: ClientSession) -> None:
    """503, said as such; the version document needs no Keystone."""
    del session
    api = await start_api()
    credentials: AuthSection = service_user(api.tenants.cloud)
    away = credentials.model_copy(update={"auth_url": f"http://127.0.0.1:{free_port()}/v3"})
    other = await start_api(auth=away)
    other.tokens["alice"] = await api.tenants.token(api.session, "alice")
    status, body = await other.ask("GET", "/servers")
    assert (status, list(body)) == (503, ["serviceUnavailable"])
    async with other.session.get(f"{other.url}/") as answer:
        assert answer.status == 200


async def test_the_services_own_password_is_wrong(start_api: StartApi) -> None:
    """That is no fault of the caller's: 503."""
    api = await start_api()
    wrong = service_user(api.tenants.cloud).model_copy(update={"username": "nobody-at-all"})
    other = await start_api(auth=wrong)
    other.tokens["alice"] = await KeystoneIdentity(api.session, api.tenants.credentials("alice")).token()
    assert (await other.ask("GET", "/servers"))[0] == 503


async def test_the_services_own_user_may_not_check_tokens(start_api: StartApi) -> None:
    """Neither is a missing role of the service: 503, and what to give it is in the log."""
    api = await start_api()
    other = await start_api(auth=api.tenants.credentials("alice"))
    status, body = await other.ask("GET", "/servers", user="bob")
    assert status == 503
    assert "Keystone cannot be used" in body["serviceUnavailable"]["message"]


async def test_without_keystone(start_api: StartApi) -> None:
    """On loopback, whoever asks is an administrator, or whom the headers name."""
    api = await start_api(auth=AuthSection(type="none"), api=ApiSection(port=free_port()))
    async with api.session.get(f"{api.url}/servers?all_tenants=1") as answer:
        assert answer.status == 200
    headers = {"X-Roles": "reader", "X-Project-Id": "p"}
    async with api.session.post(f"{api.url}/servers", headers=headers, json={}) as answer:
        assert answer.status == 403
