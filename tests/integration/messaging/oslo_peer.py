"""The real oslo.messaging in a process of its own: ``oslo_peer.py URL MODE [JSON]``, one line of JSON per event.

It lives apart because its threads, and the warnings of its dependencies, do not belong into the test process.
"""

import json
import os
import sys
import time
from typing import Any

import oslo_messaging
from oslo_config import cfg


def say(**event: Any) -> None:
    print(json.dumps(event), flush=True)  # noqa: T201 - the protocol with the test


def configured(url: str) -> cfg.ConfigOpts:
    conf = cfg.CONF  # the library registers some of its options on this global one only
    conf([])
    oslo_messaging.set_transport_defaults("sev")
    oslo_messaging.get_rpc_transport(conf, url=url)  # registers the driver's options
    conf.set_override(name="amqp_durable_queues", override=True, group="oslo_messaging_rabbit")
    return conf


def request(url: str, *, mode: str, topic: str, server: str, method: str, arguments: dict[str, Any]) -> None:
    conf = configured(url)
    transport = oslo_messaging.get_rpc_transport(conf, url=url)
    target = oslo_messaging.Target(exchange="sev", topic=topic, server=server, version="1.0")
    client = oslo_messaging.get_rpc_client(transport, target, timeout=10)
    context = {"request_id": "req-from-oslo", "user_id": "user-1", "project_id": "project-1"}
    try:
        result = getattr(client, mode)(context, method, **arguments)
    except oslo_messaging.RemoteError as error:
        say(error=error.exc_type, text=error.value)
    except oslo_messaging.MessagingTimeout as error:
        say(error="timeout", text=str(error))
    else:
        say(result=result)


class Listener:
    def _heard(self, context: Any, publisher: str, event: str, payload: Any, metadata: Any, priority: str) -> None:
        say(
            context=context,
            publisher_id=publisher,
            event_type=event,
            payload=payload,
            metadata=metadata,
            priority=priority,
        )

    def info(self, context: Any, publisher: str, event: str, payload: Any, metadata: Any) -> None:
        self._heard(context, publisher, event, payload, metadata, "info")

    def error(self, context: Any, publisher: str, event: str, payload: Any, metadata: Any) -> None:
        self._heard(context, publisher, event, payload, metadata, "error")


def listen(url: str) -> None:
    transport = oslo_messaging.get_notification_transport(configured(url), url=url)
    target = oslo_messaging.Target(exchange="sev", topic="sev_notifications")
    serve_until_told(oslo_messaging.get_notification_listener(transport, [target], [Listener()], executor="threading"))


class Endpoint:
    target = oslo_messaging.Target(version="1.3")

    def echo(self, context: dict[str, Any], **arguments: Any) -> dict[str, Any]:
        return {"arguments": arguments, "context": {name: context[name] for name in ("request_id", "project_id")}}

    def slow(self, context: dict[str, Any], seconds: float) -> str:
        time.sleep(seconds)
        return "done"

    def fail(self, context: dict[str, Any]) -> None:
        raise ValueError("the value is bad")

    def note(self, context: dict[str, Any], **arguments: Any) -> None:
        say(noted=arguments)


def serve(url: str, server: str) -> None:
    transport = oslo_messaging.get_rpc_transport(configured(url), url=url)
    target = oslo_messaging.Target(exchange="sev", topic="oslo_peer", server=server)
    serve_until_told(oslo_messaging.get_rpc_server(transport, target, [Endpoint()], executor="threading"))


def serve_until_told(server: Any) -> None:
    server.start()
    say(ready=True)
    sys.stdin.read()
    os._exit(0)  # its own orderly stop takes longer than any test here


if __name__ == "__main__":
    _, url, mode, *rest = sys.argv
    match mode:
        case "listen":
            listen(url)
        case "serve":
            serve(url, rest[0])
        case "call" | "cast":
            request(url, mode=mode, **json.loads(rest[0]))
