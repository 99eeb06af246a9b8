import asyncio
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from pydantic import SecretStr

from sev_agent.config import AuthSection, ConfigurationError
from sev_agent.openstack import identity as module
from sev_agent.openstack.exchange import BadAnswer, ServiceUnavailable
from sev_agent.openstack.identity import AuthenticationFailed, EndpointMissing, KeystoneIdentity
from tests.unit.openstack.conftest import Serve

PASSWORD = "correct horse"
LONG_AGO = datetime(1999, 12, 31, 23, 59, tzinfo=UTC)


class Clock:
    """A monotonic clock that is set forward by hand."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return monotonic() + self.ahead


class Keystone:
    """Keystone's token call, with switches for what goes wrong."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.revoked: set[str] = set()
        self.status = 201
        self.life = 3600.0
        self.delay = 0.0
        self.headers = True
        self.body: dict[str, Any] | None = None
        self.catalog: list[dict[str, Any]] = [
            service("placement", endpoint("public", "one", "http://placement.one/")),
            service(
                "image",
                endpoint("internal", "one", "http://inside.one"),
                endpoint("public", "one", "http://image.one"),
                endpoint("public", "two", "http://image.two"),
            ),
        ]

    async def answer(self, request: web.Request) -> web.Response:
        assert request.path == "/v3/auth/tokens"
        if request.method == "GET":
            return self._validation(request)
        self.requests.append(await request.json())
        number = len(self.requests)
        await asyncio.sleep(self.delay)
        token = {
            "issued_at": LONG_AGO.isoformat(),
            "expires_at": (LONG_AGO + timedelta(seconds=self.life)).isoformat(),
            "catalog": self.catalog,
        }
        body = {"token": token} if self.body is None else self.body
        headers = {"X-Subject-Token": f"token-{number}"} if self.headers else {}
        return web.json_response(body, status=self.status, headers=headers)

    def _validation(self, request: web.Request) -> web.Response:
        assert request.headers["X-Auth-Token"] == request.headers["X-Subject-Token"]
        if self.status != 201:
            return web.json_response({}, status=self.status)
        if request.headers["X-Auth-Token"] in self.revoked:
            return web.json_response({}, status=404)
        token = {"issued_at": LONG_AGO.isoformat(), "expires_at": LONG_AGO.isoformat()}
        return web.json_response({"token": token} if self.body is None else self.body)


def service(kind: str, *endpoints: dict[str, Any]) -> dict[str, Any]:
    return {"type": kind, "name": kind, "id": kind, "endpoints": list(endpoints)}


def endpoint(interface: str, region: str, url: str) -> dict[str, Any]:
    return {"id": url, "interface": interface, "region": region, "region_id": region, "url": url}


def auth(url: str, **changes: Any) -> AuthSection:
    return AuthSection.model_validate(
        {"auth_url": url, "username": "agent", "password": SecretStr(PASSWORD), "timeout": 0.5, **changes}
    )


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "monotonic", clock)
    return clock


@pytest.fixture
def keystone() -> Keystone:
    return Keystone()


@pytest.fixture
async def identity(session: aiohttp.ClientSession, serve: Serve, keystone: Keystone, clock: Clock) -> KeystoneIdentity:
    return KeystoneIdentity(session, auth(await serve(keystone.answer)))


@pytest.mark.parametrize("suffix", ["", "/", "/v3", "/v3/"])
async def test_request_as_the_configuration_says(
    session: aiohttp.ClientSession, serve: Serve, keystone: Keystone, suffix: str
) -> None:
    """The user and the project go to Keystone, whichever way its address is written."""
    changes = {"project_name": "cloud", "user_domain_name": "People", "project_domain_name": "Projects"}
    await KeystoneIdentity(session, auth(await serve(keystone.answer) + suffix, **changes)).token()
    user = {"name": "agent", "domain": {"name": "People"}, "password": PASSWORD}
    assert keystone.requests == [
        {
            "auth": {
                "identity": {"methods": ["password"], "password": {"user": user}},
                "scope": {"project": {"name": "cloud", "domain": {"name": "Projects"}}},
            }
        }
    ]


async def test_many_callers_make_one_request(identity: KeystoneIdentity, keystone: Keystone) -> None:
    """A hundred callers at once share one token, and so do later ones."""
    tokens = await asyncio.gather(*(identity.token() for _ in range(100)))
    assert {*tokens, await identity.token()} == {"token-1"}
    assert len(keystone.requests) == 1


async def test_many_callers_share_one_failure(identity: KeystoneIdentity, keystone: Keystone) -> None:
    """When Keystone hangs, callers that wait together fail together, after one time limit."""
    keystone.delay = 60
    started = monotonic()
    results = await asyncio.gather(*(identity.token() for _ in range(20)), return_exceptions=True)
    assert all(isinstance(result, ServiceUnavailable) for result in results)
    assert monotonic() - started < 2
    assert len(keystone.requests) == 1


async def test_next_caller_tries_again_after_a_failure(identity: KeystoneIdentity, keystone: Keystone) -> None:
    """A failure is not remembered: Keystone's return is noticed by the next request."""
    keystone.status = 503
    with pytest.raises(ServiceUnavailable, match="503"):
        await identity.token()
    keystone.status = 201
    assert await identity.token() == "token-2"


async def test_cancelled_caller_does_not_spoil_the_others(identity: KeystoneIdentity, keystone: Keystone) -> None:
    """When the caller that asks Keystone is cancelled, one that waits for it asks in its place.

    A failure from before is not taken for the outcome.
    """
    keystone.status = 503
    with pytest.raises(ServiceUnavailable):
        await identity.token()
    keystone.status, keystone.delay = 201, 0.2
    first, second = asyncio.create_task(identity.token()), asyncio.create_task(identity.token())
    while len(keystone.requests) < 2:  # noqa: ASYNC110 - the server is another task of this loop
        await asyncio.sleep(0)
    first.cancel()
    assert await second == "token-3"


async def test_renewed_before_its_end(identity: KeystoneIdentity, keystone: Keystone, clock: Clock) -> None:
    """A token is renewed in time; that Keystone's clock is decades behind does not matter."""
    assert await identity.token() == "token-1"
    clock.ahead = 3600 - 301
    assert await identity.token() == "token-1"
    clock.ahead = 3600 - 299
    assert await identity.token() == "token-2"


async def test_short_life(identity: KeystoneIdentity, keystone: Keystone, clock: Clock) -> None:
    """A token that lives for a minute is used for most of it."""
    keystone.life = 60
    assert await identity.token() == "token-1"
    clock.ahead = 50
    assert await identity.token() == "token-1"
    clock.ahead = 56
    assert await identity.token() == "token-2"


async def test_good_token_outlives_keystones_absence(
    identity: KeystoneIdentity, keystone: Keystone, clock: Clock
) -> None:
    """While Keystone fails, a token is used to its end, and Keystone is asked again at intervals, not each time."""
    await identity.token()
    keystone.status = 503
    clock.ahead = 3400
    assert [await identity.token() for _ in range(10)] == ["token-1"] * 10
    assert len(keystone.requests) == 2
    clock.ahead = 3411
    await identity.token()
    assert len(keystone.requests) == 3
    clock.ahead = 3601
    with pytest.raises(ServiceUnavailable):
        await identity.token()


async def test_only_the_refused_token_is_forgotten(identity: KeystoneIdentity) -> None:
    """A late refusal of an older token leaves the newer one."""
    identity.invalidate(await identity.token())
    assert await identity.token() == "token-2"
    identity.invalidate("token-1")
    assert await identity.token() == "token-2"


async def test_check(identity: KeystoneIdentity, keystone: Keystone) -> None:
    """A check keeps a token that Keystone knows, and renews one that it knows no more."""
    await identity.check()
    await identity.check()
    assert await identity.token() == "token-1"
    keystone.revoked.add("token-1")
    await identity.check()
    assert await identity.token() == "token-2"


@pytest.mark.parametrize(("status", "body"), [(500, None), (201, {})], ids=["500", "nonsense"])
async def test_check_that_fails(
    identity: KeystoneIdentity, keystone: Keystone, status: int, body: dict[str, Any] | None
) -> None:
    """A check says what is wrong with Keystone, and a token that is good is kept."""
    await identity.check()
    keystone.status, keystone.body = status, body
    with pytest.raises(ServiceUnavailable):
        await identity.check()
    assert await identity.token() == "token-1"


async def test_bad_password(identity: KeystoneIdentity, keystone: Keystone) -> None:
    """A refused user is named with its setting, is not retryable, and the password stays secret."""
    keystone.status = 401
    with pytest.raises(AuthenticationFailed) as caught:
        await identity.token()
    assert caught.value.code == "keystone.unauthorized"
    assert caught.value.field == "auth.username"
    assert not caught.value.retryable
    assert "'agent'" in str(caught.value)
    assert PASSWORD not in str(caught.value)


async def test_keystone_unreachable(session: aiohttp.ClientSession, unused_tcp_port: int) -> None:
    """Without Keystone the error names Keystone and its address."""
    with pytest.raises(ServiceUnavailable) as caught:
        await KeystoneIdentity(session, auth(f"http://127.0.0.1:{unused_tcp_port}")).token()
    assert caught.value.service == "keystone"
    assert str(unused_tcp_port) in caught.value.url


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"headers": False}, "X-Subject-Token"),
        ({"body": {}}, "token: "),
        ({"body": {"token": {"expires_at": "soon", "issued_at": "now"}}}, "issued_at"),
        ({"life": 0}, "ends before"),
        ({"status": 404}, "404"),
        ({"status": 300}, "300"),
    ],
)
async def test_nonsense(identity: KeystoneIdentity, keystone: Keystone, changes: dict[str, Any], message: str) -> None:
    """An answer that is not Keystone's is a bad answer that says what is wrong with it."""
    for name, value in changes.items():
        setattr(keystone, name, value)
    with pytest.raises(BadAnswer, match=message):
        await identity.token()


@pytest.mark.parametrize(
    ("changes", "kind", "expected"),
    [
        ({}, "placement", "http://placement.one"),
        ({"region_name": "two"}, "image", "http://image.two"),
        ({"region_name": "one"}, "image", "http://image.one"),
        ({"interface": "internal"}, "image", "http://inside.one"),
    ],
)
async def test_endpoint(
    session: aiohttp.ClientSession,
    serve: Serve,
    keystone: Keystone,
    *,
    changes: dict[str, Any],
    kind: str,
    expected: str,
) -> None:
    """The catalog's endpoint of the configured interface and region."""
    identity = KeystoneIdentity(session, auth(await serve(keystone.answer), **changes))
    assert await identity.endpoint(kind) == expected


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({}, "image", "regions one, two"),
        ({"region_name": "three"}, "image", "'three'"),
        ({"interface": "admin"}, "placement", "no admin endpoint"),
        ({}, "compute", "'compute'"),
    ],
)
async def test_no_endpoint(
    session: aiohttp.ClientSession,
    serve: Serve,
    keystone: Keystone,
    *,
    changes: dict[str, Any],
    kind: str,
    message: str,
) -> None:
    """No endpoint, or more than one region, is an error that names what was looked for."""
    identity = KeystoneIdentity(session, auth(await serve(keystone.answer), **changes))
    with pytest.raises(EndpointMissing, match=message):
        await identity.endpoint(kind)


async def test_service_registered_later(identity: KeystoneIdentity, keystone: Keystone, clock: Clock) -> None:
    """A service that is registered after the token was issued is found, without asking Keystone each time."""
    for _ in range(3):
        with pytest.raises(EndpointMissing):
            await identity.endpoint("compute")
    assert len(keystone.requests) == 1
    keystone.catalog.append(service("compute", endpoint("public", "one", "http://compute.one")))
    clock.ahead = 11
    assert await identity.endpoint("compute") == "http://compute.one"


async def test_address_is_needed(session: aiohttp.ClientSession) -> None:
    """Without Keystone's address the error names the setting."""
    with pytest.raises(ConfigurationError, match=r"auth\.auth_url"):
        KeystoneIdentity(session, AuthSection())
