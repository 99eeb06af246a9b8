"""``sev-agent run`` as a process of its own, on a machine with nothing of what it leans on but what a test gives it."""

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.running import PATIENCE

HOST_TAKEN: Final = 75
"""The exit status of a daemon whose host is another's."""

_NOBODY = "http://127.0.0.1:1"
_CONFIG = """
[host]
name = "{host}"
state_dir = "{state_dir}"
[hypervisor]
uri = "{libvirt}"
[messaging]
url = "{broker}"
[auth]
type = "none"
[glance]
endpoint = "{nobody}"
[placement]
endpoint = "{placement}"
reserved_host_cpus = {reserved_cpus}
[http]
port = 0
[log]
format = "{log_format}"
"""


def configured(
    path: Path,
    *,
    host: str,
    state_dir: Path,
    libvirt: str = "",
    broker: str = "amqp://guest:guest@127.0.0.1:1/",
    placement: str = _NOBODY,
    reserved_cpus: int = 0,
    log_format: str = "json",
) -> Path:
    """Write the configuration of such a daemon to ``path``."""
    text = _CONFIG.format(
        host=host,
        state_dir=state_dir,
        libvirt=libvirt or f"qemu+unix:///system?socket={state_dir}/no-libvirt",
        broker=broker,
        nobody=_NOBODY,
        placement=placement,
        reserved_cpus=reserved_cpus,
        log_format=log_format,
    )
    path.write_text(text)
    return path


@dataclass(frozen=True, slots=True)
class HostDaemon:
    """A daemon that was started."""

    process: asyncio.subprocess.Process

    async def until(self, word: str) -> None:
        """Wait until it says ``word``; then take no more of what it says."""
        assert self.process.stdout is not None
        async with asyncio.timeout(PATIENCE):
            while word.encode() not in (line := await self.process.stdout.readline()):
                assert line, f"the daemon ended before it said {word!r}"

    async def ended(self) -> tuple[int | None, str]:
        """Its exit status, once it has one, and what it said."""
        async with asyncio.timeout(PATIENCE):
            output, _ = await self.process.communicate()
        return self.process.returncode, output.decode()


@contextlib.asynccontextmanager
async def host_daemon(config: Path) -> AsyncIterator[HostDaemon]:
    """Start a daemon with ``config``; if it has not ended by itself, it is killed with the context."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "sev_agent", "run", "--config", str(config)),
        env={name: value for name, value in os.environ.items() if not name.startswith("SEV_AGENT_")},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        yield HostDaemon(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()
