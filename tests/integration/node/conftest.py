"""A real daemon in a child process, and a small dispatcher of the tests' own to speak to it."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pyarrow as pa
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dim_pipelines.content.memory import MemoryContentStore
from dim_pipelines.content.shards import encode_shard
from dim_pipelines.content.store import Block
from dim_pipelines.content.unixfs import add_folder, tree_blocks
from dim_pipelines.domain.cid import RAW, Cid
from dim_pipelines.domain.events import Task, TaskDone, TaskFailed
from dim_pipelines.domain.grant import Grant
from dim_pipelines.domain.model import ModelDescription, ModelInput, ModelOutput
from dim_pipelines.domain.work import Plan, PlanStep
from dim_pipelines.identity.authority import issue_grant
from dim_pipelines.identity.keys import format_public_key, public_bytes
from dim_pipelines.identity.signatures import MODEL_DOMAIN, sign
from dim_pipelines.node.process import NodeProcess
from dim_pipelines.wire.channel import open_channel
from dim_pipelines.wire.session import CreditGranted, DispatcherSession, SessionOpened, SessionRefused, TasksAnswered
from dim_pipelines.wire.v1 import blocks_pb2, blocks_pb2_grpc, node_pb2, node_pb2_grpc

WIDTH = 8


def description(engine: str = "echo", **more: Any) -> ModelDescription:
    return ModelDescription(
        name=engine,
        version="1",
        engine=engine,
        licence="MIT",
        inputs=(ModelInput(name="x", datatype="FP32", shape=(WIDTH,)),),
        outputs=(ModelOutput(name="y", datatype="FP32", shape=(WIDTH,)),),
        **more,
    )


def shard(first: int, rows: int = 4) -> bytes:
    values = np.random.default_rng(first).random(rows * WIDTH, dtype=np.float32)
    column = pa.FixedSizeListArray.from_arrays(pa.array(values), WIDTH)
    return encode_shard(pa.table({"id": pa.array(range(first, first + rows)), "x": column}))


@dataclass
class Stream:
    """One work stream, read in the background."""

    call: Any
    session: DispatcherSession
    opened: SessionOpened | None = None
    refused: SessionRefused | None = None
    outcomes: list[TaskDone | TaskFailed] = field(default_factory=list)
    keep_alives: int = 0
    ended: bool = False
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    reader: asyncio.Task[None] | None = None

    async def read(self) -> None:
        try:
            async for message in self.call:
                self.take(message)
                self.changed.set()
            self.ended = True
        finally:
            asyncio.get_running_loop().call_soon(self.changed.set)

    def take(self, message: node_pb2.NodeMessage) -> None:
        for event in self.session.receive(message, time.monotonic()):
            if isinstance(event, SessionOpened):
                self.opened = event
            elif isinstance(event, SessionRefused):
                self.refused = event
            elif isinstance(event, TasksAnswered):
                self.outcomes += event.outcomes
            elif not isinstance(event, CreditGranted):
                self.keep_alives += 1

    async def until(self, condition: Callable[[Stream], object], timeout_s: float = 30.0) -> None:
        async with asyncio.timeout(timeout_s):
            while not condition(self):
                if self.reader and self.reader.done() and not condition(self):
                    self.reader.result()
                    raise AssertionError(f"the stream ended: {self}")
                self.changed.clear()
                await self.changed.wait()

    async def send(self, tasks: Sequence[Task]) -> None:
        """Send tasks as credit allows, until all are sent."""
        todo = list(tasks)
        while todo:
            await self.until(lambda stream: stream.session.credit)
            now, todo = todo[: self.session.credit], todo[self.session.credit :]
            await self.call.write(self.session.send_tasks(now))

    async def end(self) -> None:
        await self.call.done_writing()
        assert self.reader
        await asyncio.wait_for(self.reader, 20)


class Client:
    """Puts content on a node and opens streams."""

    def __init__(self, address: str, key: Ed25519PrivateKey, channel: grpc.aio.Channel | None = None) -> None:
        self.address = address
        self.channel = channel or open_channel(address)
        self.node = node_pb2_grpc.NodeServiceStub(self.channel)
        self.blocks = blocks_pb2_grpc.BlockServiceStub(self.channel)
        self.key = key
        self.store = MemoryContentStore()
        self.streams: list[Stream] = []

    async def put(self, blocks: Sequence[Block]) -> Any:
        async def messages() -> AsyncIterator[blocks_pb2.Blocks]:
            for start in range(0, len(blocks), 64):
                part = blocks[start : start + 64]
                yield blocks_pb2.Blocks(blocks=[blocks_pb2.Block(cid=item.cid, data=item.data) for item in part])

        return await self.blocks.Put(messages())

    async def put_model(self, files: dict[str, Any], key: Ed25519PrivateKey | None = None) -> tuple[Cid, list[Cid]]:
        """Put a package on the node; signed when a key is given."""
        model = await add_folder(self.store, files)
        blocks = [Block(cid, await self.store.get(cid)) async for cid in tree_blocks(self.store, model)]
        signatures = []
        if key:
            signature = sign(key, MODEL_DOMAIN, model)
            blocks.append(Block(signature.cid(), signature.encode()))
            signatures.append(signature.cid())
        await self.put(blocks)
        return model, signatures

    async def put_plan(self, model: Cid, signatures: Sequence[Cid] = (), **more: Any) -> Cid:
        numerics = more.pop("numerics", "any")
        step = {"model": model, "signatures": tuple(signatures), "batch_rows": 4, "columns": ("x",)} | more
        plan = Plan(work=Cid.of(RAW, b"work"), numerics=numerics, steps=(PlanStep(**step),))
        await self.put([Block(plan.cid(), plan.encode())])
        return plan.cid()

    async def put_echo_plan(self, **more: Any) -> Cid:
        model, _ = await self.put_model({"dim-model.json": description().to_json()})
        return await self.put_plan(model, **more)

    async def put_shards(self, count: int, rows: int = 4) -> list[Task]:
        blocks = []
        for number in range(count):
            data = shard(number * rows, rows)
            blocks.append(Block(Cid.of(RAW, data), data))
        await self.put(blocks)
        return [Task(number, 0, (block.cid,), rows) for number, block in enumerate(blocks)]

    def grant(self, batch: str, epoch: int, **more: Any) -> bytes:
        key = more.pop("key", self.key)
        given = {
            "network": "local",
            "batch": batch,
            "epoch": epoch,
            "owner": "local",
            "holder": hashlib.sha256(public_bytes(self.key)).digest(),
            "not_after_ms": int(time.time() * 1000) + 3_600_000,
        }
        return issue_grant(key, Grant(**(given | more))).encode()

    async def open(self, plan: Cid, *, batch: str, epoch: int = 1, **more: Any) -> Stream:
        """Open a stream and wait for the node's answer."""
        session = DispatcherSession(time.monotonic())
        stream = Stream(self.node.Work(), session)
        self.streams.append(stream)
        await stream.call.write(session.open(self.grant(batch, epoch, **more), plan))
        stream.reader = asyncio.create_task(stream.read())
        await stream.until(lambda stream: stream.opened or stream.refused)
        return stream

    async def get(self, cid: Cid) -> bytes:
        async for message in self.blocks.Get(blocks_pb2.GetRequest(cids=[cid])):
            assert len(message.blocks) == 1
            return bytes(message.blocks[0].data)
        raise AssertionError("no block")

    async def close(self) -> None:
        for stream in self.streams:
            stream.call.cancel()
            if stream.reader:
                stream.reader.cancel()
        await asyncio.gather(*(stream.reader for stream in self.streams if stream.reader), return_exceptions=True)
        await self.channel.close()


@pytest.fixture(scope="session")
def user_key() -> Ed25519PrivateKey:
    return Ed25519PrivateKey.generate()


@pytest.fixture(scope="session")
def trusted(user_key: Ed25519PrivateKey) -> str:
    return format_public_key(public_bytes(user_key))


@pytest.fixture(scope="session")
def shared_node(tmp_path_factory: pytest.TempPathFactory, trusted: str) -> Iterator[NodeProcess]:
    """An echo daemon for tests that leave it as they found it."""
    with NodeProcess.start(tmp_path_factory.mktemp("n"), name="shared", trust=[trusted], engines=["echo"]) as node:
        yield node


@pytest.fixture(scope="session")
def dispatcher() -> type[Client]:
    """Give the class of clients, for channels of a test's own."""
    return Client


@pytest.fixture
async def client(shared_node: NodeProcess, user_key: Ed25519PrivateKey) -> AsyncIterator[Client]:
    client = Client(shared_node.address, user_key)
    yield client
    await client.close()


@pytest.fixture
async def start_node(
    tmp_path: Path, trusted: str, user_key: Ed25519PrivateKey
) -> AsyncIterator[Callable[..., tuple[NodeProcess, Client]]]:
    """Give `start_node(**options)`: a daemon of the test's own, and a client of it."""
    nodes: list[NodeProcess] = []
    clients: list[Client] = []

    def start(**options: Any) -> tuple[NodeProcess, Client]:
        home = tmp_path / f"h{len(nodes)}"
        given: dict[str, Any] = {"name": f"n{len(nodes)}", "trust": [trusted], "engines": ["echo"]} | options
        nodes.append(NodeProcess.start(given.pop("home", home), **given))
        clients.append(Client(nodes[-1].address, user_key))
        return nodes[-1], clients[-1]

    yield start
    for client in clients:
        await client.close()
    for node in nodes:
        node.kill()


@pytest.fixture(scope="session")
def children() -> Callable[[int], list[int]]:
    """Give `children(pid)`: the live child processes of a process."""

    def find(pid: int) -> list[int]:
        found = []
        for name in (path.name for path in Path("/proc").iterdir()):
            if name.isdigit():
                try:
                    fields = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
                except OSError:
                    continue
                if int(fields[1]) == pid and fields[0] != "Z":
                    found.append(int(name))
        return found

    return find
