"""Two whole daemons configured by mistake as one host: the second ends, and says why."""

from pathlib import Path

from tests.host_daemon import HOST_TAKEN, configured, host_daemon
from tests.rabbitmq import RabbitNode


async def test_second_daemon_refuses_to_start(node: RabbitNode, host: str, tmp_path: Path) -> None:
    """The same name or state directory: status 75 and the reason; after a kill of the first, another starts."""

    def config(name: str, *, host: str, state: str) -> Path:
        return configured(tmp_path / name, broker=node.url, host=host, state_dir=tmp_path / state)

    async with host_daemon(config("1.toml", host=host, state="state-1")) as first:
        await first.until("broker.up")

        async with host_daemon(config("2.toml", host=host, state="state-2")) as second:
            status, said = await second.ended()
        assert status == HOST_TAKEN
        assert f"host.name: another daemon serves host '{host}'" in said

        async with host_daemon(config("3.toml", host=f"other-{host}", state="state-1")) as third:
            status, said = await third.ended()
        assert status == HOST_TAKEN
        assert f"{tmp_path}/state-1: host {host}, process {first.process.pid}" in said

    async with host_daemon(config("2.toml", host=host, state="state-1")) as next_one:
        await next_one.until("broker.up")
        next_one.process.terminate()
        status, _ = await next_one.ended()
    assert status == 0
