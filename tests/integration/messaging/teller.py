"""A daemon's outbox in a process of its own, which tells five things and the end of an operation, to be killed then.

``teller.py URL DIRECTORY FIRST``: numbers FIRST to FIRST+4 are ticks, FIRST+5 is the end, which is saved and which
the outbox does not hear of, as in a crash between the two. Prints ``ready`` once all is where it has to be.
"""

import asyncio
import sys
from pathlib import Path

from sev_agent.compute.announcements import Announcements
from sev_agent.compute.outbox import Outbox
from sev_agent.compute.record import State
from sev_agent.config import NotificationsSection
from sev_agent.messaging.broker import Broker
from sev_agent.messaging.notifications import Notifier
from sev_agent.messaging.spool import Spool
from tests.journal import opened
from tests.requests import record


async def main(url: str, directory: Path, first: int) -> None:
    store = opened(directory / "instances")
    broker = Broker(url, connection_name="teller", connect_timeout=5, reconnect_max=0.5, publish_timeout=5)
    notifier = Notifier(broker, publisher_id="sev_agent.node1")
    outbox = Outbox(notifier, Spool(directory / "notifications"), store, NotificationsSection())
    outbox.open()
    tell = Announcements(outbox, store, "node1")
    async with asyncio.TaskGroup() as running:
        running.create_task(broker.run())
        running.create_task(outbox.run())
        for number in range(first, first + 5):
            tell.host("tick", {"number": number})
        while outbox._unsafe:  # noqa: ASYNC110 - polled from outside
            await asyncio.sleep(0.01)
        ended = record(State.ACTIVE)
        store.save(ended, owing=tell._about(ended, "create", "end", {"number": first + 5}))
        print("ready", flush=True)  # noqa: T201 - what the test waits for


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])))
