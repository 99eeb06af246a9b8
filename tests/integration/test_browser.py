"""The status page in a real browser, which is the judge of what the page lets it do."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sev_agent.config import HttpSection
from sev_agent.observe.health import Dependency, Health
from sev_agent.observe.http import HttpEndpoints
from sev_agent.observe.metrics import Metrics
from sev_agent.observe.page import StatusPage
from tests.rabbitmq import free_port
from tests.running import PATIENCE, running
from tests.status_page import read, rows

HOSTILE = "</td></table><script>document.title = 'mine'</script><img src='/metrics' onerror='document.title = 1'>"


@pytest.fixture
async def url() -> AsyncIterator[str]:
    """A daemon's page, with a reason on it that somebody else wrote."""
    health, metrics, port, listening = Health([Dependency.LIBVIRT]), Metrics(), free_port(), asyncio.Event()
    health.down(Dependency.LIBVIRT, HOSTILE)
    endpoints = HttpEndpoints(
        HttpSection(port=port),
        health=health,
        metrics=metrics,
        page=StatusPage("Host node1", health=health),
        is_alive=lambda: True,
        on_listening=listening.set,
    )
    async with running(endpoints):
        async with asyncio.timeout(PATIENCE):
            await listening.wait()
        yield f"http://127.0.0.1:{port}/"


async def test_in_chromium(url: str, tmp_path: Path) -> None:
    """Chromium applies the page's style and has nothing to complain of; what others wrote is text to it, too."""
    process = await asyncio.create_subprocess_exec(
        "chromium",
        "--headless",
        # It reads nothing but our own page, and its sandbox is not to be had by root in a container.
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        "--no-first-run",
        f"--user-data-dir={tmp_path}",
        "--enable-logging=stderr",
        "--dump-dom",
        url,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(2 * PATIENCE):
            document, said = await process.communicate()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
    assert process.returncode == 0, said.decode()
    assert not [line for line in said.decode().splitlines() if "CONSOLE" in line]
    root = read(document.decode())
    assert root.findtext(".//title") == "Host node1: not ready"
    assert rows(root, "What it leans on")[0][4] == HOSTILE
