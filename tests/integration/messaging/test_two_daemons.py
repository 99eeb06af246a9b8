"""Two whole daemons configured by mistake as one host: the second ends, and says why."""

import asyncio
import os
import sys
from pathlib import Path

from tests.rabbitmq import RabbitNode

_HOST_TAKEN = 75

_CONFIG = """
[host]
name = "{host}"
state_dir = "{state_dir}"
[hypervisor]
uri = "qemu+unix:///system?socket={state_dir}/no-libvirt"
[messaging]
url = "{url}"
[auth]
type = "none"
[glance]
endpoint = "http://127.0.0.1:1"
[placement]
endpoint = "http://127.0.0.1:1"
[http]
port = 0
[log]
format = "json"
"""


def _configured(path: Path, *, url: str, host: str, state_dir: Path) -> Path:
    path.write_text(_CONFIG.format(url=url, host=host, state_dir=state_dir))
    return path


async def _start(path: Path) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "sev_agent", "run", "--config", str(path)),
        env={name: value for name, value in os.environ.items() if not name.startswith("SEV_AGENT_")},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )


async def _until(process: asyncio.subprocess.Process, word: bytes) -> None:
    assert process.stdout is not None
    async with asyncio.timeout(30):
        while word not in (line := await process.stdout.readline()):
            assert line, f"the daemon ended before it said {word!r}"


async def _ended(process: asyncio.subprocess.Process) -> tuple[int | None, str]:
    async with asyncio.timeout(40):
        output, _ = await process.communicate()
    return process.returncode, output.decode()


async def test_second_daemon_refuses_to_start(node: RabbitNode, host: str, tmp_path: Path) -> None:
    """The same name or state directory: status 75 and the reason; after a kill of the first, another starts."""
    first = await _start(_configured(tmp_path / "1.toml", url=node.url, host=host, state_dir=tmp_path / "state-1"))
    try:
        await _until(first, b"broker.up")

        status, said = await _ended(
            await _start(_configured(tmp_path / "2.toml", url=node.url, host=host, state_dir=tmp_path / "state-2"))
        )
        assert status == _HOST_TAKEN
        assert f"host.name: another daemon serves host '{host}'" in said

        status, said = await _ended(
            await _start(
                _configured(tmp_path / "3.toml", url=node.url, host=f"other-{host}", state_dir=tmp_path / "state-1")
            )
        )
        assert status == _HOST_TAKEN
        assert f"{tmp_path}/state-1: host {host}, process {first.pid}" in said
    finally:
        first.kill()
        await first.communicate()

    second = await _start(_configured(tmp_path / "2.toml", url=node.url, host=host, state_dir=tmp_path / "state-1"))
    try:
        await _until(second, b"broker.up")
    finally:
        second.terminate()
        status, _ = await _ended(second)
    assert status == 0
