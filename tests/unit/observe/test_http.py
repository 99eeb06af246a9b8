"""The daemon's HTTP endpoints, asked by a real client."""

import asyncio
import contextlib
import re
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import aiohttp
import pytest

from sev_agent.config import HttpSection
from sev_agent.observe.health import OF_A_HOST, Dependency, Health
from sev_agent.observe.http import HttpEndpoints
from sev_agent.observe.metrics import Metrics
from sev_agent.observe.page import StatusPage


@dataclass
class Daemon:
    """What is asked, and what stands behind the answers."""

    url: str
    health: Health
    metrics: Metrics
    task: "asyncio.Task[None]"
    alive: list[bool] = field(default_factory=lambda: [True])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
async def daemon() -> AsyncIterator[Daemon]:
    health, metrics, port, listening = Health(), Metrics(), free_port(), asyncio.Event()
    alive = [True]
    endpoints = HttpEndpoints(
        HttpSection(port=port),
        health=health,
        metrics=metrics,
        page=StatusPage("Host <node1>", health=health),
        is_alive=lambda: alive[0],
        on_listening=listening.set,
    )
    task = asyncio.create_task(endpoints.run())
    async with asyncio.timeout(60):
        await listening.wait()
    yield Daemon(f"http://127.0.0.1:{port}", health, metrics, task, alive)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def test_healthz(daemon: Daemon, session: aiohttp.ClientSession) -> None:
    """Alive is 200, not alive 503: what a process manager asks before it restarts."""
    async with session.get(f"{daemon.url}/healthz") as answer:
        assert (answer.status, await answer.json()) == (200, {"alive": True})
    daemon.alive[0] = False
    async with session.get(f"{daemon.url}/healthz") as answer:
        assert (answer.status, await answer.json()) == (503, {"alive": False})


async def test_readyz(daemon: Daemon, session: aiohttp.ClientSession) -> None:
    """Ready only with all dependencies, with a reason for each that is missing."""
    daemon.health.up(Dependency.LIBVIRT)
    daemon.health.down(Dependency.PLACEMENT, "placement at http://p cannot be talked to")
    async with session.get(f"{daemon.url}/readyz") as answer:
        body = await answer.json()
        assert answer.status == 503
    assert body["ready"] is False
    assert {name: (found["up"], found["reason"]) for name, found in body["dependencies"].items()} == {
        "libvirt": (True, ""),
        "broker": (False, "not connected yet"),
        "placement": (False, "placement at http://p cannot be talked to"),
        "work_queue": (False, "not connected yet"),
        "keystone": (False, "not connected yet"),
        "glance": (False, "not connected yet"),
    }
    assert all(found["since"].endswith("+00:00") for found in body["dependencies"].values())

    for dependency in OF_A_HOST:
        daemon.health.up(dependency)
    async with session.get(f"{daemon.url}/readyz") as answer:
        assert answer.status == 200
        assert (await answer.json())["ready"] is True


async def test_status_page(daemon: Daemon, session: aiohttp.ClientSession) -> None:
    """/ is a page for people, also while nothing is ready, with headers that let it load and run nothing."""
    async with session.get(f"{daemon.url}/") as answer:
        assert (answer.status, answer.content_type, answer.charset) == (200, "text/html", "utf-8")
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert (answer.headers["X-Content-Type-Options"], answer.headers["Cache-Control"]) == ("nosniff", "no-store")
        assert "<h1>Host &lt;node1&gt;</h1>" in await answer.text()


async def test_unknown_path_and_method(daemon: Daemon, session: aiohttp.ClientSession) -> None:
    """Nothing else is served, and nothing can be written."""
    async with session.get(f"{daemon.url}/instances") as answer:
        assert answer.status == 404
    async with session.post(f"{daemon.url}/healthz") as answer:
        assert answer.status == 405


async def test_metrics(daemon: Daemon, session: aiohttp.ClientSession) -> None:
    """Every metric is there under its name and with its labels, as Prometheus reads it."""
    metrics = daemon.metrics
    metrics.builds.labels("error", "image.missing").inc()
    metrics.build_seconds.observe(0.3)
    metrics.step_seconds.labels("disk").observe(0.02)
    metrics.deletions.labels("deleted").inc()
    metrics.requests.labels("get_instance", "ok").inc()
    metrics.reconciliations.labels("clean").inc()
    metrics.differences.labels("surplus", "true").inc()
    metrics.openstack_seconds.labels("placement", "GET", "200").observe(0.01)
    used = [1.0]
    metrics.observe("sev_agent_slots_used", "Slots in use.", ("generation",), lambda: [(("amd-sev",), used[0])])
    metrics.observe_health(daemon.health)

    text = await _metrics(session, daemon.url)

    assert 'sev_agent_builds_total{code="image.missing",outcome="error"} 1.0' in text
    assert "sev_agent_build_seconds_count 1.0" in text
    assert 'sev_agent_build_step_seconds_sum{step="disk"} 0.02' in text
    assert 'sev_agent_deletions_total{outcome="deleted"} 1.0' in text
    assert 'sev_agent_rpc_requests_total{method="get_instance",outcome="ok"} 1.0' in text
    assert 'sev_agent_reconciliations_total{outcome="clean"} 1.0' in text
    assert 'sev_agent_drift_total{kind="surplus",repaired="true"} 1.0' in text
    assert 'sev_agent_openstack_request_seconds_count{method="GET",service="placement",status="200"} 1.0' in text
    assert 'sev_agent_slots_used{generation="amd-sev"} 1.0' in text
    assert "sev_agent_ready 0.0" in text
    assert 'sev_agent_dependency_up{dependency="libvirt"} 0.0' in text
    assert any(line.startswith("process_resident_memory_bytes ") for line in text)
    used[0] = 2.0
    assert 'sev_agent_slots_used{generation="amd-sev"} 2.0' in await _metrics(session, daemon.url)


async def _metrics(session: aiohttp.ClientSession, url: str) -> list[str]:
    async with session.get(f"{url}/metrics") as answer:
        assert answer.status == 200
        assert answer.content_type == "text/plain"
        return (await answer.text()).splitlines()


def test_names() -> None:
    """Every metric of ours has a text, and a name that follows Prometheus's rules."""
    for family in Metrics().registry.collect():
        assert family.documentation
        if not family.name.startswith(("process_", "python_")):
            assert re.fullmatch(r"sev_agent_[a-z_]+", family.name)


async def test_address_in_use(daemon: Daemon) -> None:
    """An address that somebody else has is an error that names it, not a daemon without endpoints."""
    port = int(daemon.url.rpartition(":")[2])
    health = Health()
    second = HttpEndpoints(
        HttpSection(port=port),
        health=health,
        metrics=Metrics(),
        page=StatusPage("Host node1", health=health),
        is_alive=lambda: True,
    )

    with pytest.raises(OSError, match=str(port)):
        await second.run()


async def test_stop(daemon: Daemon) -> None:
    """A stop frees the address, with clients connected."""
    async with aiohttp.ClientSession() as session:
        await (await session.get(f"{daemon.url}/healthz")).release()
        daemon.task.cancel()
        async with asyncio.timeout(60):
            with contextlib.suppress(asyncio.CancelledError):
                await daemon.task
        with pytest.raises(aiohttp.ClientConnectionError):
            await session.get(f"{daemon.url}/healthz")
