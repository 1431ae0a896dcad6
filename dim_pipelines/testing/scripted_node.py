"""A node in this process that speaks the real protocol over a real socket and misbehaves on command.

It has no engine: its outputs are a column computed from the id, so that every row of a result can be checked.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
import pyarrow as pa
from prometheus_client import CollectorRegistry

from dim_pipelines.content.memory import MemoryContentStore
from dim_pipelines.content.shards import decode_shard, encode_shard
from dim_pipelines.content.store import ContentStore
from dim_pipelines.content.unixfs import add_bytes, read_bytes
from dim_pipelines.domain.cid import Cid
from dim_pipelines.domain.events import RowError, Task, TaskDone, TaskFailed, Usage
from dim_pipelines.domain.node import Device, NodeDescription
from dim_pipelines.domain.work import Plan
from dim_pipelines.node.blocks import BlockServicer
from dim_pipelines.telemetry.metrics import NodeMetrics
from dim_pipelines.wire import codec
from dim_pipelines.wire.channel import SERVER_OPTIONS
from dim_pipelines.wire.session import CancelRequested, NodeSession, OpenRequested, State, TasksReceived
from dim_pipelines.wire.v1 import blocks_pb2_grpc, node_pb2, node_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(slots=True)
class Faults:
    """What goes wrong, counted in tasks since the node began.

    Attributes:
        delay_s: seconds each task takes.
        slow: shards that take `slow_s` instead.
        drop_after: the stream is cut before the answer to this task, once.
        silent_after: nothing is said from this task on, keep-alives included.
        duplicate: every answer is sent twice.
        wrong_bytes: shards whose block holds other bytes than its CID says.
        wrong_rows: shards whose output lacks a row.
        garbage: shards whose output is no shard.
        fail: shard → code of the failure that it ends with, always.
        fail_once: the same, the first time only.
        bad_rows: shard → row that the model finds bad.
        refuse: code and reason with which every session is refused.
        hand_back: shards that are handed back the first time.
        padding: bytes that each output row carries besides, to make outputs of several blocks.
        gate: tasks wait for it before they begin: what a test must see first does not depend on anybody's speed.
    """

    delay_s: float = 0.0
    slow: frozenset[int] = frozenset()
    slow_s: float = 0.0
    drop_after: int | None = None
    silent_after: int | None = None
    duplicate: bool = False
    wrong_bytes: frozenset[int] = frozenset()
    wrong_rows: frozenset[int] = frozenset()
    garbage: frozenset[int] = frozenset()
    fail: dict[int, str] = field(default_factory=dict)
    fail_once: dict[int, str] = field(default_factory=dict)
    bad_rows: dict[int, int] = field(default_factory=dict)
    refuse: tuple[str, str] | None = None
    hand_back: frozenset[int] = frozenset()
    padding: int = 0
    gate: asyncio.Event | None = None


class _LyingStore(MemoryContentStore):
    """Gives other bytes for some blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.lies: dict[Cid, bytes] = {}

    async def get(self, cid: Cid) -> bytes:
        return self.lies.get(cid) or await super().get(cid)


class ScriptedNode(node_pb2_grpc.NodeServiceServicer):
    """A node.

    Attributes:
        store: its blocks.
        faults: what goes wrong; may be changed while it runs.
        computed: shards in the order in which they were computed, retries included.
        cancelled: shards whose tasks were cancelled while they ran.
        opened: sessions opened.
        sessions: work streams that are open now.
        left: is set when a work stream has ended.
        largest_message: most tasks seen in one message.
        on_task: is told of each task before it is computed.
        key: its public key.
        said: further fields of its description; may be changed while it runs.
    """

    def __init__(
        self,
        name: str,
        faults: Faults | None = None,
        *,
        credit: int = 32,
        numerics: str = "echo/1",
        store: ContentStore | None = None,
        on_task: Callable[[Task], None] | None = None,
        key: bytes | None = None,
        **description: Any,
    ) -> None:
        """Make a node; `start` lets it serve.

        Args:
            name: its name.
            faults: what goes wrong.
            credit: tasks it takes at a time.
            numerics: its base class of the engine `echo`.
            store: its blocks; a store in memory when left out. One with a swarm is shared with the run worker.
            on_task: is told of each task before it is computed.
            key: its public key, by which it is known; one of its own when left out.
            description: more of what it says of itself, such as `paused`; see `said`.
        """
        self.key = key or os.urandom(32)
        self.said = description
        self.name = name
        self.faults = faults or Faults()
        self.store: ContentStore = store or _LyingStore()
        self.computed: list[int] = []
        self.cancelled: list[int] = []
        self.opened = 0
        self.sessions = 0
        self.left = asyncio.Event()
        self.largest_message = 0
        self.on_task = on_task
        self._credit, self._numerics = credit, numerics
        self._tasks = 0
        self._silent = False
        self._dropped = False
        self._tried: set[int] = set()
        self._server: grpc.aio.Server | None = None
        self.address = ""

    async def start(self, address: str = "127.0.0.1:0") -> str:
        """Serve; give the address."""
        self._server = grpc.aio.server(options=list(SERVER_OPTIONS))
        node_pb2_grpc.add_NodeServiceServicer_to_server(self, self._server)
        blocks_pb2_grpc.add_BlockServiceServicer_to_server(
            BlockServicer(self.store, NodeMetrics(CollectorRegistry())), self._server
        )
        port = self._server.add_insecure_port(address)
        await self._server.start()
        self.address = address if address.startswith("unix:") else f"127.0.0.1:{port}"
        return self.address

    async def kill(self) -> None:
        """Be gone at once."""
        if self._server is not None:
            await self._server.stop(0)
            self._server = None

    async def DescribeNode(self, request: node_pb2.DescribeNodeRequest, context: Context) -> node_pb2.NodeDescription:
        """Say what it is."""
        return codec.description_to_wire(
            NodeDescription(
                name=self.name,
                key=self.key,
                version="test",
                devices=(Device("cpu", "cpu", "cpu", 1 << 30),),
                numerics={"echo": self._numerics},
                swarm=self.store.swarm,
                max_input_bytes=64 << 20,
                **self.said,
            )
        )

    async def Work(  # type: ignore[override]  # the stubs know handlers that yield, not those that write
        self, request_iterator: object, context: Context
    ) -> None:
        """Serve a session."""
        session = NodeSession(time.monotonic())
        writing = asyncio.Lock()

        async def send(message: node_pb2.NodeMessage) -> None:
            async with writing:
                if not self._silent:
                    await context.write(message)

        running: dict[int, asyncio.Task[None]] = {}
        beating = asyncio.create_task(self._beat(session, send))
        self.sessions += 1
        try:
            while True:
                message = await context.read()
                if not isinstance(message, node_pb2.DispatcherMessage):
                    return
                for event in session.receive(message, time.monotonic()):
                    await self._on_event(event, session, send, running, context)
                if session.state is State.CLOSED:
                    return
        finally:
            beating.cancel()
            for task in running.values():
                task.cancel()
            self.sessions -= 1
            self.left.set()

    async def _on_event(
        self, event: object, session: NodeSession, send: Any, running: dict[int, asyncio.Task[None]], context: Context
    ) -> None:
        match event:
            case OpenRequested(_, _, plan):
                if self.faults.refuse is not None:
                    await send(session.refuse(*self.faults.refuse))
                    return
                dtype = Plan.decode(await self.store.get(plan)).numerics.rpartition("/")[2]
                self.opened += 1
                await send(session.opened(self.name, f"{self._numerics}/{dtype if dtype != 'any' else 'FP32'}"))
                await send(session.grant_credit(self._credit))
            case TasksReceived(tasks):
                self.largest_message = max(self.largest_message, len(tasks))
                for task in tasks:
                    running[task.shard] = asyncio.create_task(self._answer(task, session, send, context))
            case CancelRequested(keys) if keys:
                for shard, _, _ in keys:
                    running[shard].cancel()
                    self.cancelled.append(shard)
                # all at once: a task that answers while this waits would be answered twice
                answers = session.outcomes([TaskFailed(*key, "cancelled", "cancelled", True) for key in keys])
                await send(answers)
                await send(session.grant_credit(len(keys)))

    async def _answer(self, task: Task, session: NodeSession, send: Any, context: Context) -> None:
        faults, shard = self.faults, task.shard
        if self.on_task is not None:
            self.on_task(task)
        if faults.gate is not None:
            await faults.gate.wait()
        await asyncio.sleep(faults.slow_s if shard in faults.slow else faults.delay_s)
        self._tasks += 1
        if faults.silent_after is not None and self._tasks > faults.silent_after:
            self._silent = True
        if faults.drop_after is not None and self._tasks > faults.drop_after and not self._dropped:
            self._dropped = True
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the stream was cut")
        first = shard not in self._tried
        self._tried.add(shard)
        outcome = await self._outcome(task, first)
        message = session.outcomes([outcome])
        await send(message)
        if faults.duplicate:
            await send(message)
        await send(session.grant_credit(1))

    async def _outcome(self, task: Task, first: bool) -> TaskDone | TaskFailed:
        faults, shard = self.faults, task.shard
        key = (shard, task.step, task.attempt)
        if first and shard in faults.hand_back:
            return TaskFailed(*key, "node_busy", "draining", True, handed_back=True)
        code = faults.fail.get(shard) or (faults.fail_once.get(shard) if first else None)
        if code is not None:
            return TaskFailed(*key, code, "it broke", True)
        self.computed.append(shard)
        output = compute(decode_shard(await read_bytes(self.store, task.inputs[0])), faults.padding)
        if shard in faults.wrong_rows:
            output = output.slice(1)
        data = b"no shard" if shard in faults.garbage else encode_shard(output)
        cid = await add_bytes(self.store, data)
        if shard in faults.wrong_bytes and isinstance(self.store, _LyingStore):
            self.store.lies[cid] = data[:-1] + b"!"
        errors = (RowError(faults.bad_rows[shard], "it is bad"),) if shard in faults.bad_rows else ()
        rows = output.num_rows
        return TaskDone(*key, cid, rows, Usage(rows, 1, len(data), 1, 0), errors)

    async def _beat(self, session: NodeSession, send: Any) -> None:
        with contextlib.suppress(grpc.aio.UsageError, asyncio.InvalidStateError):
            while True:
                await asyncio.sleep(1.0)
                if session.state in (State.OPENING, State.OPEN):
                    await send(session.keep_alive())


def compute(batch: pa.RecordBatch, padding: int = 0) -> pa.RecordBatch:
    """Give what a scripted node computes: the id, its text with an exclamation mark, and padding where it is wanted."""
    ids = batch.column(0)
    names, columns = [batch.schema.names[0], "answer"], [ids, pa.array([f"{value}!" for value in ids.to_pylist()])]
    if padding:
        names.append("padding")
        columns.append(pa.array([b"%d" % value * padding for value in ids.to_pylist()], pa.binary()))
    return pa.RecordBatch.from_arrays(columns, names=names)
