"""The real oslo.messaging in a process of its own: ``oslo_client.py URL HOST``, requests in, events out, as JSON lines.

It listens to notifications from the start, and makes each request that it reads: ``{"mode": "cast", "topic": ...,
"method": ..., "arguments": {...}}``. It lives apart because its threads, and the warnings of its dependencies, do not
belong into the test process.
"""

import json
import os
import sys
from typing import Any

import oslo_messaging
from oslo_config import cfg


def say(**event: Any) -> None:
    print(json.dumps(event), flush=True)  # noqa: T201 - the protocol with the test


class Listener:
    def info(self, context: Any, publisher: str, event: str, payload: Any, metadata: Any) -> None:
        say(event_type=event, publisher_id=publisher, payload=payload, request_id=context.get("request_id"))

    error = info


def main(url: str, host: str) -> None:
    conf = cfg.CONF  # the library registers some of its options on this global one only
    conf([])
    oslo_messaging.set_transport_defaults("sev")
    transport = oslo_messaging.get_rpc_transport(conf, url=url)
    conf.set_override(name="amqp_durable_queues", override=True, group="oslo_messaging_rabbit")
    hearing = oslo_messaging.get_notification_listener(
        oslo_messaging.get_notification_transport(conf, url=url),
        [oslo_messaging.Target(exchange="sev", topic="sev_notifications")],
        [Listener()],
        executor="threading",
    )
    hearing.start()
    say(ready=True)
    for line in sys.stdin:
        asked = json.loads(line)
        target = oslo_messaging.Target(exchange="sev", topic=asked["topic"], server=host, version="1.0")
        client = oslo_messaging.get_rpc_client(transport, target, timeout=30)
        context = {"request_id": "req-from-oslo", "user_id": "user-1", "project_id": "project-1"}
        try:
            result = getattr(client, asked["mode"])(context, asked["method"], **asked["arguments"])
        except oslo_messaging.RemoteError as error:
            say(error=error.exc_type, text=error.value)
        else:
            say(result=result)
    os._exit(0)  # its own orderly stop takes longer than any test here


if __name__ == "__main__":
    main(*sys.argv[1:])
