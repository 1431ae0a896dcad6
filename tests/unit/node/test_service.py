"""Sessions that open: what they reserve when they fail on the way, and drains that begin meanwhile."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from datetime import datetime
from pathlib import Path
from typing import Any, cast

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from grpc.aio import EOF  # type: ignore[attr-defined]
from prometheus_client import CollectorRegistry

from dim_pipelines.content.memory import MemoryContentStore
from dim_pipelines.domain.cid import RAW, Cid
from dim_pipelines.domain.grant import Grant
from dim_pipelines.domain.model import ModelDescription, ModelInput
from dim_pipelines.errors import EngineFailed
from dim_pipelines.identity.authority import issue_grant
from dim_pipelines.identity.keys import public_bytes
from dim_pipelines.node.admission import DeviceMemory
from dim_pipelines.node.controls import Controls, Hours
from dim_pipelines.node.engine_host import EngineHost
from dim_pipelines.node.epochs import Epochs
from dim_pipelines.node.model_cache import CachedModel, ModelCache
from dim_pipelines.node.plans import PlanReader, ReadyStep
from dim_pipelines.node.runner import Runner
from dim_pipelines.node.service import NodeParts, NodeServicer
from dim_pipelines.node.trusting import NodeTrust
from dim_pipelines.telemetry.metrics import NodeMetrics
from dim_pipelines.wire.session import DispatcherSession
from dim_pipelines.wire.v1 import node_pb2

KEY = Ed25519PrivateKey.generate()
BYTES = 600


class Host:
    """An engine process of straw; `held` keeps an operation from ending, `broken` lets it fail."""

    def __init__(self) -> None:
        self.alive = True
        self.starts = 1
        self.held: dict[str, asyncio.Event] = {}
        self.broken: set[str] = set()
        self.models: set[str] = set()
        self.asked: list[str] = []
        self.asking = asyncio.Event()
        self.on_exit: Callable[[], None] = lambda: None

    async def start(self) -> None:
        self.alive = True
        self.starts += 1

    async def ask(self, header: dict[str, Any], *payload: bytes, timeout_s: float) -> tuple[dict[str, Any], bytes]:
        self.asked.append(header["op"])
        self.asking.set()
        if header["op"] in self.held:
            await self.held[header["op"]].wait()
        if header["op"] in self.broken:
            raise EngineFailed("broken")
        (self.models.add if header["op"] == "load" else self.models.discard)(header["model"])
        return {"ok": True, "resident": BYTES, "peak": 0}, b""

    async def kill(self) -> None:
        self.alive = False
        self.models.clear()


class Plans:
    """Gives the step of its model, once it may."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.go.set()
        self.reading = asyncio.Event()
        self.trusted = True

    async def read(self, cid: Cid, numerics: dict[str, str]) -> tuple[str, list[ReadyStep]]:
        self.reading.set()
        await self.go.wait()
        return "echo-1", [step(bytes(cid).hex())]

    def still_allowed(self, steps: list[ReadyStep]) -> bool:
        return self.trusted

    def release(self, steps: list[ReadyStep]) -> None: ...


class Trust:
    """Trusts the tests' key until told otherwise."""

    def __init__(self) -> None:
        self.submitters = {public_bytes(KEY)}
        self.most: int | None = None

    def open_grant(self, data: bytes, now_ms: int, caller: str = "") -> tuple[Grant, bytes]:
        return NodeTrust(self.submitters).open_grant(data, now_ms, caller)

    def check(self, grant: Grant, signer: bytes) -> None:
        NodeTrust(self.submitters).check(grant, signer)

    def max_sessions(self, signer: bytes) -> int | None:
        return self.most


class Context:
    """One work stream's transport."""

    def __init__(self) -> None:
        self.sent: asyncio.Queue[object] = asyncio.Queue()
        self.got: list[node_pb2.NodeMessage] = []
        self.opened = asyncio.Event()

    def auth_context(self) -> dict[str, list[bytes]]:
        return {}  # a caller of this machine

    async def read(self) -> object:
        return await self.sent.get()

    async def write(self, message: node_pb2.NodeMessage) -> None:
        self.got.append(message)
        if message.HasField("opened"):
            self.opened.set()

    def refusal(self) -> tuple[str, str]:
        """Give the code and the reason of the one refusal."""
        (refused,) = [message.refused for message in self.got if message.HasField("refused")]
        return refused.code, refused.reason

    def kinds(self) -> list[str | None]:
        return [message.WhichOneof("message") for message in self.got]

    def open(self, batch: str, plan: Cid, epoch: int = 1) -> None:
        ends = int(time.time() * 1000) + 60_000
        grant = Grant(network="local", batch=batch, epoch=epoch, owner="local", holder=bytes(32), not_after_ms=ends)
        self.sent.put_nowait(DispatcherSession(0.0).open(issue_grant(KEY, grant).encode(), plan))


def plan(name: str) -> Cid:
    return Cid.of(RAW, name.encode())


def step(name: str) -> ReadyStep:
    tensor = ModelInput(name="x", datatype="FP32", shape=())
    description = ModelDescription(name="m", version="1", engine="echo", licence="MIT", inputs=(tensor,))
    return ReadyStep(CachedModel(Cid.of(RAW, name.encode()), Path("/models"), description, 400), {}, 1)


class Node:
    def __init__(self, folder: Path) -> None:
        self.host = Host()
        self.plans = Plans()
        self.metrics = NodeMetrics(CollectorRegistry())
        self.memory = DeviceMemory(1000)
        self.controls = Controls()
        self.trust = Trust()
        self.now = datetime(2026, 11, 23, 12)
        self.runner = Runner("cpu", cast(EngineHost, self.host), self.memory, self.metrics)
        self.epochs = Epochs(folder / "epochs.db")
        store = MemoryContentStore()
        self.service = NodeServicer(
            NodeParts(
                "n", store, ModelCache(folder / "models", 1000), cast(PlanReader, self.plans), [self.runner],
                self.epochs, cast(NodeTrust, self.trust), {}, self.metrics, lambda: cast(Any, None),
                lambda: self.controls, lambda: self.now,
            )
        )  # fmt: skip
        self.working: list[asyncio.Task[None]] = []

    def work(self, batch: str, epoch: int = 1) -> tuple[Context, asyncio.Task[None]]:
        context = Context()
        context.open(batch, plan(batch), epoch)
        self.working.append(asyncio.create_task(self.service.Work(None, cast(Any, context))))
        return context, self.working[-1]

    async def one_after_the_other(self, *batches: str) -> None:
        for batch in batches:
            context, working = self.work(batch)
            await context.opened.wait()
            context.sent.put_nowait(EOF)
            await working


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    node = Node(tmp_path)
    yield node
    for working in node.working:
        working.cancel()
    await asyncio.gather(*node.working, return_exceptions=True)
    node.epochs.close()


def users(node: Node) -> list[int]:
    return [item.users for item in node.memory.loaded.values()]


async def test_the_room_of_an_evicted_model_is_made_before_the_next_is_loaded(node: Node) -> None:
    await node.one_after_the_other("a", "b")
    assert node.host.asked == ["load", "unload", "load"] and len(node.host.models) == 1 and users(node) == [0]


async def test_an_open_cancelled_while_it_unloads_leaves_no_reservation(node: Node) -> None:
    await node.one_after_the_other("a")
    node.host.held["unload"] = asyncio.Event()
    node.host.asking.clear()
    _, working = node.work("b")
    await node.host.asking.wait()
    working.cancel()
    await asyncio.wait([working])
    assert users(node) == [0]
    del node.host.held["unload"]
    await node.one_after_the_other("c")
    assert len(node.host.models) == 1 and sum(item.reserved for item in node.memory.loaded.values()) <= 1000


async def test_an_open_cancelled_while_the_device_is_taken_unloads_later(node: Node) -> None:
    await node.one_after_the_other("a")
    async with node.runner._engine:
        _, working = node.work("b")
        await node.plans.reading.wait()
        while users(node) != [1]:  # noqa: ASYNC110 - what is looked at has no event
            await asyncio.sleep(0)
        working.cancel()
        await asyncio.wait([working])
    assert users(node) == [0] and len(node.host.models) == 1
    await node.one_after_the_other("c")
    assert len(node.host.models) == 1


async def test_a_process_that_cannot_unload_is_ended(node: Node) -> None:
    await node.one_after_the_other("a")
    node.host.broken.add("unload")
    await node.one_after_the_other("b")
    assert node.host.starts == 2 and len(node.host.models) == 1


async def test_an_open_that_cannot_load_leaves_no_reservation(node: Node) -> None:
    node.host.broken.add("load")
    context, working = node.work("a")
    await working
    assert context.kinds() == ["refused"] and users(node) == [0]


async def test_a_session_that_is_opening_when_a_drain_begins_is_refused(node: Node) -> None:
    node.plans.go.clear()
    context, working = node.work("a")
    await node.plans.reading.wait()
    draining = asyncio.create_task(node.service.drain(10))
    await asyncio.sleep(0)
    node.plans.go.set()
    assert await draining == (0, 0)
    await working
    assert context.kinds() == ["refused"] and context.got[0].refused.code == "node_busy"


async def test_a_drain_has_one_deadline_for_everything(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, _ = node.work("a")
    await opened.opened.wait()
    node.plans.go.clear()
    node.plans.reading.clear()
    node.work("b")
    await node.plans.reading.wait()
    begun = time.monotonic()
    await node.service.drain(0.6)
    assert 0.5 < time.monotonic() - begun < 1.15
    assert opened.kinds()[-1] == "refused"


async def test_a_closed_node_refuses_and_one_that_closes_while_a_session_opens_refuses_it_too(node: Node) -> None:
    node.controls = Controls(paused=True)
    context, working = node.work("a")
    await working
    assert context.refusal() == ("node_busy", "this node is paused by its owner")
    node.controls = Controls(hours=Hours.parse("09:00-17:00"))
    node.plans.go.clear()
    context, working = node.work("b")
    await node.plans.reading.wait()
    node.now = node.now.replace(hour=17)
    node.plans.go.set()
    await working
    assert context.refusal()[0] == "node_busy" and "09:00-17:00" in context.refusal()[1] and users(node) == [0]


async def test_an_owners_number_of_sessions_counts_those_that_open_but_not_the_one_that_is_replaced(
    node: Node,
) -> None:
    node.controls = Controls(max_sessions=1)
    first, serving = node.work("a")
    await first.opened.wait()
    second, working = node.work("b")
    await working
    assert second.refusal()[0] == "node_busy" and "1 sessions are open" in second.refusal()[1]
    newer, _ = node.work("a", epoch=2)
    await newer.opened.wait()
    await serving
    assert first.refusal()[0] == "stale_epoch"


async def test_a_signer_holds_no_more_sessions_than_the_roster_allows_it(node: Node) -> None:
    node.trust.most = 1
    first, _ = node.work("a")
    await first.opened.wait()
    second, working = node.work("b")
    await working
    assert second.refusal()[0] == "quota_exceeded" and "the roster allows 1" in second.refusal()[1]
    newer, _ = node.work("a", epoch=2)
    await newer.opened.wait()


@pytest.mark.parametrize("lost", ["signer", "publisher"])
async def test_sessions_of_those_who_are_trusted_no_more_are_cut(node: Node, lost: str) -> None:
    context, working = node.work("a")
    await context.opened.wait()
    node.service.check_trust()
    assert not working.done() and node.service.sessions == 1
    if lost == "signer":
        node.trust.submitters.clear()
    else:
        node.plans.trusted = False
    node.service.check_trust()
    await asyncio.wait_for(working, 60)
    assert context.refusal()[0] == "forbidden" and node.service.sessions == 0


async def test_a_session_whose_signer_is_revoked_while_it_opens_is_refused(node: Node) -> None:
    node.plans.go.clear()
    context, working = node.work("a")
    await node.plans.reading.wait()
    node.trust.submitters.clear()
    node.plans.go.set()
    await working
    assert context.refusal()[0] == "forbidden" and "opened" not in context.kinds()


async def test_a_node_that_closes_ends_its_sessions_with_the_reason_and_serves_again_later(node: Node) -> None:
    context, working = node.work("a")
    await context.opened.wait()
    await node.service.hand_back("this node is paused by its owner")
    await asyncio.wait_for(working, 60)
    assert context.refusal() == ("node_busy", "this node is paused by its owner")
    await node.one_after_the_other("b")
