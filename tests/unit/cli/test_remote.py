"""The commands' way to a host."""

import pytest

from sev_agent.cli import remote
from sev_agent.messaging.broker import BrokerUnavailable


async def test_no_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing listens, the error says which option or setting names the address."""
    monkeypatch.setattr(remote, "_CONNECT_SECONDS", 0.1)
    with pytest.raises(BrokerUnavailable) as caught:
        async with remote.connected("amqp://me:s3cret@127.0.0.1:1/", "node1", told_by="--broker"):
            pass
    assert "virtual host in --broker" in str(caught.value)
    assert "s3cret" not in str(caught.value)
