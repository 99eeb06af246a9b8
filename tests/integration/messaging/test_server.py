"""How a server consumes its queue of a real RabbitMQ, begins, pauses, stops, and begins again."""

import asyncio

from sev_agent.messaging import topology
from sev_agent.messaging.broker import Broker
from sev_agent.messaging.client import RpcClient
from sev_agent.messaging.envelope import RequestContext
from sev_agent.messaging.server import RpcServer
from sev_agent.messaging.topology import QueueSpec
from tests.integration.messaging.conftest import GOOD, UUID, Connect, Host, Run, declared, soon
from tests.proxy import Proxy


async def test_concurrency_is_bounded(server: RpcServer, client: RpcClient, on_host: Host, queue: QueueSpec) -> None:
    """No more requests are in hand than allowed, and all are done in the end."""
    for _ in range(10):
        await client.cast("work", GOOD, queue=queue.name)
    for _ in range(4):
        await soon(on_host.started)
    on_host.release.set()
    for _ in range(10):
        await soon(on_host.finished)
    assert on_host.most_running == 4


async def test_pause_removes_the_consumer_and_resume_brings_it_back(
    server: RpcServer, client: RpcClient, on_host: Host, queue: QueueSpec
) -> None:
    """While paused the broker sees no consumer and keeps the requests; afterwards they are done."""
    on_host.release.set()
    assert await client.consumer_count(queue.name) == 1
    await server.pause()
    assert await client.consumer_count(queue.name) == 0
    await client.cast("work", GOOD, queue=queue.name)
    assert on_host.started.empty()
    await server.resume()
    await soon(on_host.finished)
    assert await client.consumer_count(queue.name) == 1


async def test_pause_leaves_what_is_in_hand_to_finish(
    server: RpcServer, broker: Broker, client: RpcClient, on_host: Host, queue: QueueSpec
) -> None:
    """A request that runs when the pause comes is finished and acked, not done twice."""
    await client.cast("work", GOOD, queue=queue.name)
    await soon(on_host.started)
    await server.pause()
    on_host.release.set()
    await soon(on_host.finished)
    await server.resume()
    await on_host.consumed()
    await client.call("work", GOOD, queue=queue.name, timeout=10)
    assert on_host.started.qsize() == 1


async def test_stop_finishes_what_is_in_hand(
    broker: Broker, client: RpcClient, on_host: Host, queue: QueueSpec, run: Run
) -> None:
    """A stop takes no new request, but lets the running one end, be answered and acked."""
    serving = on_host.serve(broker, queue)
    task = run(serving)
    await on_host.consumed()
    call = asyncio.create_task(client.call("work", GOOD, queue=queue.name, timeout=10))
    await soon(on_host.started)
    task.cancel()
    await asyncio.sleep(0.2)
    assert not on_host.is_consumed.is_set()
    assert not task.done()
    on_host.release.set()
    assert await call == {"did": UUID}
    await asyncio.wait({task}, timeout=5)
    assert task.cancelled()
    assert (await declared(broker, queue.name)).declaration_result.message_count == 0


async def test_stop_gives_up_after_its_time(
    broker: Broker, client: RpcClient, on_host: Host, queue: QueueSpec, run: Run
) -> None:
    """A request that does not end within the stop's time is abandoned, and done by the next server."""
    serving = on_host.serve(broker, queue, stop_timeout=0.2)
    task = run(serving)
    await on_host.consumed()
    await client.cast("work", GOOD, queue=queue.name)
    await soon(on_host.started)
    task.cancel()
    await asyncio.wait({task}, timeout=5)
    assert task.cancelled()
    assert on_host.running == 0
    on_host.release.set()
    run(on_host.serve(broker, queue))
    await soon(on_host.finished)


async def test_request_survives_its_channel_and_comes_again(
    proxy: Proxy, connect: Connect, client: RpcClient, on_host: Host, queue: QueueSpec, run: Run
) -> None:
    """A handler goes on when its connection is cut; as its ack is lost, the request is delivered again."""
    serving = on_host.serve(await connect(f"amqp://sev-agent:tests@127.0.0.1:{proxy.port}/"), queue)
    run(serving)
    await on_host.consumed()
    context = RequestContext(request_id="req-once")
    await client.cast("work", GOOD, queue=queue.name, context=context)
    assert await soon(on_host.started) == context
    proxy.cut()
    assert await soon(on_host.started) == context
    assert on_host.running == 2
    on_host.release.set()
    assert [await soon(on_host.finished), await soon(on_host.finished)] == [context, context]
    await serving.pause()
    assert await client.consumer_count(queue.name) == 0


async def test_told_when_requests_can_come(
    broker: Broker, client: RpcClient, on_host: Host, queue: QueueSpec, run: Run
) -> None:
    """Whoever sends to a queue that never was before, once its server says that it is consumed, is heard."""
    on_host.release.set()
    run(on_host.serve(broker, queue))
    await on_host.consumed()
    await client.cast("work", GOOD, queue=queue.name)
    await soon(on_host.finished)


async def test_deleted_queue_is_made_again(
    server: RpcServer, broker: Broker, client: RpcClient, on_host: Host, queue: QueueSpec
) -> None:
    """A queue that an operator deletes is declared and consumed again."""
    on_host.release.set()
    await (await declared(broker, queue.name)).delete(if_unused=False, if_empty=False)
    async with asyncio.timeout(60):
        while not await client.consumer_count(queue.name):  # noqa: ASYNC110 - the broker tells only when asked
            await asyncio.sleep(0.01)
    assert await client.call("work", GOOD, queue=queue.name, timeout=10) == {"did": UUID}


async def test_queue_with_other_properties_is_told_with_remedy(
    server: RpcServer, broker: Broker, on_host: Host, host: str, run: Run
) -> None:
    """A changed delivery limit does not crash the server: it says what is wrong and what to do."""
    told = asyncio.Event()
    other = on_host.serve(broker, topology.work_queue(host, delivery_limit=7), on_change=lambda _: told.set())
    run(other)
    async with asyncio.timeout(60):
        await told.wait()
    assert other.fault is not None
    assert other.fault.code == "message.topology"
    assert "x-delivery-limit" in other.fault.message
    assert "delete_queue" in str(other.fault.remedy)
