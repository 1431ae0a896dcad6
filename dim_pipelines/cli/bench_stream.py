"""The dispatch of descriptors alone: the assignment, both sessions, the codec and gRPC, but no data and no model.

`python -m dim_pipelines.cli.bench_stream SOCKET` is the node's half: it answers each task the moment it comes.
The dispatcher's half runs the same rules as a batch: shards are claimed, sent for credit, and marked done.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

from dim_pipelines.domain.cid import DAG_CBOR, RAW, Cid
from dim_pipelines.domain.events import Task, TaskDone
from dim_pipelines.errors import NodeUnreachable
from dim_pipelines.wire import session as wire
from dim_pipelines.wire.v1 import node_pb2

TASKS: Final = 30_000
"""Tasks of one measurement."""
CREDIT: Final = 256
"""Tasks in flight."""
PER_MESSAGE: Final = 64
"""Tasks in one message, at most."""
_NODE: Final = "bench"
_OUTPUT: Final = Cid.of(RAW, b"")
_START_S: Final = 10.0


async def measure_stream(socket: Path) -> float:
    """Send `TASKS` tasks through one work stream to a process of its own and give the tasks per second.

    Raises:
        NodeUnreachable: the node's half did not start.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "dim_pipelines.cli.bench_stream", str(socket), stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        if not await asyncio.wait_for(process.stdout.readline(), _START_S):
            raise NodeUnreachable("the node's half of the measurement did not start")
        return await _dispatch(f"unix:{socket}")
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _dispatch(address: str) -> float:
    from dim_pipelines.dispatch.node_client import NodeClient
    from dim_pipelines.scheduling.assignment import Assignment

    client = NodeClient(address)
    session = wire.DispatcherSession(time.monotonic())
    assignment = Assignment(TASKS, range(TASKS))
    assignment.join(_NODE)
    call = client.work()
    await call.write(session.open(b"", Cid.of(DAG_CBOR, b"\xa0")))
    start = time.perf_counter()
    credit = 0
    async for message in call:
        for event in session.receive(message, time.monotonic()):
            if isinstance(event, wire.CreditGranted):
                credit += event.n
            elif isinstance(event, wire.TasksAnswered):
                for outcome in event.outcomes:
                    assignment.computed(_NODE, outcome.shard, outcome.attempt, time.monotonic())
                    assignment.done(outcome.shard)
        while credit >= PER_MESSAGE or (credit and assignment.waiting < PER_MESSAGE):
            now = time.monotonic()
            assignment.ready(_NODE, assignment.claim(_NODE, min(credit, PER_MESSAGE), now))
            taken = assignment.take(_NODE, min(credit, PER_MESSAGE), now)
            if not taken:
                break
            credit -= len(taken)
            tasks = [
                Task(shard=item.shard, step=0, inputs=(_OUTPUT,), input_rows=1, attempt=item.attempt) for item in taken
            ]
            await call.write(session.send_tasks(tasks))
        if not assignment.remaining:
            break
    seconds = time.perf_counter() - start
    call.cancel()
    await client.close()
    return TASKS / seconds


async def _work(
    messages: AsyncIterator[node_pb2.DispatcherMessage], context: Any
) -> AsyncIterator[node_pb2.NodeMessage]:
    session = wire.NodeSession(time.monotonic())
    async for message in messages:
        for event in session.receive(message, time.monotonic()):
            if isinstance(event, wire.OpenRequested):
                yield session.opened(_NODE, "any")
                yield session.grant_credit(CREDIT)
            elif isinstance(event, wire.TasksReceived):
                done = [
                    TaskDone(shard=task.shard, step=0, attempt=task.attempt, output=_OUTPUT, rows=task.input_rows)
                    for task in event.tasks
                ]
                yield session.outcomes(done)
                yield session.grant_credit(len(done))


async def _serve(socket: str) -> None:
    import grpc

    from dim_pipelines.wire.channel import SERVER_OPTIONS

    server = grpc.aio.server(options=list(SERVER_OPTIONS))
    work = grpc.stream_stream_rpc_method_handler(
        _work,
        request_deserializer=node_pb2.DispatcherMessage.FromString,
        response_serializer=node_pb2.NodeMessage.SerializeToString,
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("dim.v1.NodeService", {"Work": work}),))
    server.add_insecure_port(f"unix:{socket}")
    await server.start()
    print("ready", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1]))
