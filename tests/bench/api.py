"""What the compute API takes for a thousand servers: time to list them, time for a small question, memory.

It runs as a process of its own, on SQLite and without Keystone; the lab gives the broker. The servers are rows.
"""

import asyncio
import contextlib
import json
import os
import sqlite3
import sys
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import aiohttp
from pydantic import SecretStr

from sev_agent.api.database import Database
from sev_agent.api.migrations import upgrade
from sev_agent.api.tables import ServerRow
from sev_agent.config import DatabaseSection
from sev_agent.lab.state import free_ports
from tests.bench.daemon import resident_mb
from tests.bench.result import Result
from tests.bench.stage import Stage

SERVERS: Final = 1000
DETAIL_GOAL_MS: Final = 150.0
MEMORY_GOAL_MB: Final = 120.0

_ASKED = 20
_AT_ONCE = 1000
_READY_SECONDS = 60.0
_PROJECT = "bench"


async def thousand_servers(stage: Stage) -> list[Result]:
    """A list of a thousand servers with details, a single server, a thousand requests at once, memory after it all."""
    directory = stage.lab.directory / "api-bench"
    directory.mkdir(exist_ok=True)
    return await measure(directory, stage.lab.rabbit_url)


async def measure(directory: Path, rabbit_url: str) -> list[Result]:
    """As ``thousand_servers``, in ``directory``."""
    path = directory / f"{uuid4()}.sqlite"
    settings = DatabaseSection(url=SecretStr(f"sqlite:///{path}"))
    await upgrade(settings)
    server = await _fill(settings)
    floor = [_least(path) for _ in range(_ASKED)]
    async with _running(directory, settings, rabbit_url) as (url, pid), _session() as session:
        await _ask(session, f"{url}/servers/detail")
        detail = [await _ask(session, f"{url}/servers/detail") for _ in range(_ASKED)]
        single = [await _ask(session, f"{url}/servers/{server}") for _ in range(_ASKED * 5)]
        begun = time.perf_counter()
        await asyncio.gather(*(_ask(session, f"{url}/servers/{server}") for _ in range(_AT_ONCE)))
        crowd = time.perf_counter() - begun
        memory = resident_mb(pid)
    return [
        Result.of("api.list-of-1000", detail, "ms", floor=sorted(floor)[len(floor) // 2], goal=DETAIL_GOAL_MS),
        Result.of("api.one-server", single, "ms"),
        Result.of("api.1000-at-once", [crowd], "s"),
        Result.of("api.memory", [memory], "MiB", goal=MEMORY_GOAL_MB),
    ]


def _session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        headers={"X-Project-Id": _PROJECT, "X-Roles": "member"}, connector=aiohttp.TCPConnector(limit=0)
    )


async def _ask(session: aiohttp.ClientSession, url: str) -> float:
    """Milliseconds from the question to the whole answer."""
    begun = time.perf_counter()
    async with session.get(url, headers={"OpenStack-API-Version": "compute 2.61"}) as answer:
        body = await answer.read()
        assert answer.status == 200, body[:500]
    return (time.perf_counter() - begun) * 1000


async def _fill(settings: DatabaseSection) -> str:
    """Put the servers there; one's identifier."""
    database = Database(settings)
    rows = [_row(index) for index in range(SERVERS)]
    async with database.writing() as session:
        session.add_all(rows)
    await database.close()
    return rows[0].id


def _row(index: int) -> ServerRow:
    now = datetime.now(UTC) - timedelta(seconds=index)
    flavor: dict[str, Any] = {"name": "small", "vcpus": 1, "memory_mb": 512, "root_gb": 1}
    return ServerRow(
        id=str(uuid4()),
        project_id=_PROJECT,
        user_id="user",
        name=f"server-{index}",
        created_at=now,
        updated_at=now,
        launched_at=now,
        vm_state="active",
        host=f"compute-{index % 50}",
        flavor_id="small",
        flavor={**flavor, "extra_specs": {"hw:mem_encryption": "true"}},
        vcpus=1,
        memory_mb=512,
        image_id=str(uuid4()),
        reservation_id="r-12345678",
        launch_index=0,
        properties={"purpose": "bench"},
        tags=[],
        request={"instance": {"user_data": "QUJD" * 250}, "generation": "amd-sev"},
        request_id=f"req-{uuid4()}",
        attempt=0,
        casts=1,
        looks=0,
    )


def _least(path: Path) -> float:
    """Milliseconds to read the same rows by SQLite alone, and to write them as JSON."""
    begun = time.perf_counter()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.row_factory = sqlite3.Row
        rows = connection.execute("SELECT * FROM servers WHERE project_id = ? ORDER BY created_at DESC", (_PROJECT,))
        text = json.dumps([{key: row[key] for key in row.keys() if key != "request"} for row in rows])  # noqa: SIM118
    assert len(text) > SERVERS
    return (time.perf_counter() - begun) * 1000


@contextlib.asynccontextmanager
async def _running(directory: Path, database: DatabaseSection, rabbit_url: str) -> AsyncIterator[tuple[str, int]]:
    """An API; the address of its version, and its process."""
    port, http = free_ports(2)
    config = directory / "api.toml"
    config.write_text(
        f'[api]\nport = {port}\n[http]\nport = {http}\n[auth]\ntype = "none"\n[log]\nlevel = "error"\n'
        f'[database]\nurl = "{database.url.get_secret_value()}"\n[messaging]\nurl = "{rabbit_url}"\n'
    )
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "sev_agent", "api", "--config", str(config)),
        stdin=asyncio.subprocess.DEVNULL,
        # As the unit has it.
        env={**os.environ, "MALLOC_ARENA_MAX": "2"},
    )
    try:
        await _wait_ready(f"http://127.0.0.1:{http}/readyz")
        yield f"http://127.0.0.1:{port}/v2.1", process.pid
    finally:
        process.terminate()
        await process.wait()


async def _wait_ready(url: str) -> None:
    async with asyncio.timeout(_READY_SECONDS), aiohttp.ClientSession() as session:
        while True:
            with contextlib.suppress(aiohttp.ClientError):
                async with session.get(url) as answer:
                    if answer.status == 200:
                        return
            await asyncio.sleep(0.1)
