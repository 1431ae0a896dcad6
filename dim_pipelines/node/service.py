"""NodeService: opens sessions, describes the node, warms and measures models, drains.

Opening is where a stranger's wishes meet the node's rules, in this order: grant, the owner's controls, epoch, plan,
licence, signatures, engine and numerics, disk, device memory, and only then the model's first byte reaches the engine
process.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, TypeVar

import grpc
from grpc.aio import EOF  # type: ignore[attr-defined]

from dim_pipelines.content.store import ContentStore
from dim_pipelines.domain.advertisement import Speed
from dim_pipelines.domain.grant import Grant
from dim_pipelines.domain.node import NodeDescription
from dim_pipelines.errors import (
    ContentUnavailable,
    DimError,
    Forbidden,
    NodeBusy,
    ProtocolError,
    QuotaExceeded,
    StaleEpoch,
)
from dim_pipelines.node.admission import DoesNotFit
from dim_pipelines.node.controls import MAX_SESSIONS, Controls
from dim_pipelines.node.epochs import Epochs
from dim_pipelines.node.model_cache import ModelCache
from dim_pipelines.node.plans import PlanReader, ReadyStep
from dim_pipelines.node.runner import Runner
from dim_pipelines.node.trusting import NodeTrust
from dim_pipelines.node.warming import Warmer, reserve
from dim_pipelines.node.work import KEEP_ALIVE_S, Cut, WorkStream
from dim_pipelines.telemetry.metrics import NodeMetrics
from dim_pipelines.wire.access import Peer
from dim_pipelines.wire.callers import peer_of
from dim_pipelines.wire.codec import cid_from_wire, description_to_wire, speed_to_wire
from dim_pipelines.wire.session import NodeSession, OpenRequested
from dim_pipelines.wire.v1 import node_pb2, node_pb2_grpc

log = logging.getLogger(__name__)

OPEN_TIMEOUT_S: Final = 600.0
"""How long a session may take to open: a model has to be fetched and loaded."""
FIRST_MESSAGE_S: Final = 10.0
"""How long a stream may be silent before its Open."""
_LAST_IDLE_S: Final = 30.0  # how long a drain without a deadline waits for sessions that were cut or are opening
_LAST_WORDS_S: Final = 0.5  # how long a drain waits at least until sessions that it cut have said so
_END: Final = Cut(NodeBusy.code, "the node is shutting down")

Context = grpc.aio.ServicerContext[Any, Any]
Progress = TypeVar("Progress")


@dataclass(slots=True)
class _Session:
    """What let a session in: asked again when the roster changes."""

    grant: Grant
    signer: bytes
    numerics: str
    token: object = field(default_factory=object)


async def _no_status() -> node_pb2.NodeStatus:
    return node_pb2.NodeStatus()


@dataclass(frozen=True, slots=True)
class NodeParts:
    """What the service is made of.

    Attributes:
        trust: whose grants are honoured.
        numerics: engine → numerics base class.
        describe: gives the description, without `draining`.
        controls: gives the owner's controls as they are now.
        local_time: gives the node's local time, for its hours.
        measured: keeps a measured speed.
        status: gives what the node's other parts know of themselves.
    """

    name: str
    store: ContentStore
    cache: ModelCache
    plans: PlanReader
    runners: Sequence[Runner]
    epochs: Epochs
    trust: NodeTrust
    numerics: dict[str, str]
    metrics: NodeMetrics
    describe: Callable[[], NodeDescription]
    controls: Callable[[], Controls] = Controls
    local_time: Callable[[], datetime] = datetime.now
    measured: Callable[[Speed], None] = lambda speed: None
    status: Callable[[], Awaitable[node_pb2.NodeStatus]] = _no_status


class NodeServicer(node_pb2_grpc.NodeServiceServicer):
    """The node's side of every session."""

    def __init__(self, parts: NodeParts) -> None:
        """Serve with these parts."""
        self._parts = parts
        self._streams: dict[WorkStream, _Session] = {}
        self._newest: dict[tuple[str, str], tuple[int, object]] = {}
        self._opening = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._warmer = Warmer(parts.store, parts.cache, parts.plans, parts.runners, parts.numerics)
        self.draining = False

    async def GetStatus(self, request: node_pb2.GetStatusRequest, context: Context) -> node_pb2.NodeStatus:
        """Say how this node is: for its owner, and for `dim doctor`."""
        message = await self._parts.status()
        message.description.CopyFrom(await self.DescribeNode(node_pb2.DescribeNodeRequest(), context))
        message.closed = _END.reason if self.draining else self._parts.controls().closed(self._parts.local_time())
        message.sessions = self.sessions
        message.tasks = self.tasks
        return message

    async def DescribeNode(self, request: node_pb2.DescribeNodeRequest, context: Context) -> node_pb2.NodeDescription:
        """Say what this node is."""
        message = description_to_wire(self._parts.describe())
        message.draining = self.draining
        return message

    async def Work(self, request_iterator: object, context: Context) -> None:  # type: ignore[override]
        """Serve one session from Open to its end.

        The stubs know only handlers that yield; this one writes through the context, from several tasks.
        """
        sending = asyncio.Lock()

        async def receive() -> node_pb2.DispatcherMessage | None:
            message = await context.read()
            return None if message is EOF else message

        async def send(message: node_pb2.NodeMessage) -> None:
            async with sending:
                await context.write(message)

        session = NodeSession(time.monotonic())
        async with asyncio.timeout(FIRST_MESSAGE_S):
            first = await receive()
        if first is None:
            return
        events = session.receive(first, time.monotonic())
        if not events or not isinstance(events[0], OpenRequested):
            raise ProtocolError("a work stream begins with Open")
        alive = asyncio.create_task(_say_alive(session, send))
        steps: list[ReadyStep] = []
        runners: list[Runner] = []
        try:
            self._begin()
            try:
                async with asyncio.timeout(OPEN_TIMEOUT_S):
                    opened = await self._open(events[0], peer_of(context), steps, runners)
            except DoesNotFit as error:
                await send(session.refuse(error.code, error.message, need=error.need, free=error.free))
                return
            except DimError as error:
                log.info("refused a session: %s", error.message)
                await send(session.refuse(error.code, error.message))
                return
            except TimeoutError:
                await send(session.refuse(ContentUnavailable.code, "the plan and its models did not come in time"))
                return
            finally:
                alive.cancel()
            grant = opened.grant
            stream = WorkStream(session, grant, steps, runners, self._parts.store, self._parts.metrics, send)
            if self._newest.get((grant.network, grant.batch), (0, None))[1] is not opened.token:
                await send(session.refuse(StaleEpoch.code, f"a newer run has taken batch {grant.batch}"))
                return
            cut = self._no_longer(opened, steps)
            if cut:  # since it began to open
                self._forget(opened)
                await send(session.refuse(cut.code, cut.reason))
                return
            self._streams[stream] = opened  # from here on a drain finds it
            try:
                await send(session.opened(self._parts.name, opened.numerics))
                await stream.run(receive)
            finally:
                del self._streams[stream]
                self._forget(opened)
        finally:
            alive.cancel()
            for runner in runners:
                for step in steps:
                    runner.memory.release(step.key)
            self._parts.plans.release(steps)
            self._parts.metrics.cache_bytes.set(self._parts.cache.bytes)
            self._finish()

    async def WarmModel(
        self, request: node_pb2.WarmModelRequest, context: Context
    ) -> AsyncIterator[node_pb2.WarmProgress]:
        """Bring a model to the disk and the devices, and tell how far it is."""
        model = cid_from_wire(request.model)
        signatures = [cid_from_wire(raw) for raw in request.signatures]
        told: asyncio.Queue[node_pb2.WarmProgress | None] = asyncio.Queue()

        def tell(stage: str, done: int, total: int) -> None:
            told.put_nowait(node_pb2.WarmProgress(stage=stage, done=done, total=total))

        warming = asyncio.create_task(self._warmer.warm(model, signatures, max(1, request.batch_rows), tell))
        async for progress in _told(told, warming):
            yield progress
        self._parts.metrics.cache_bytes.set(self._parts.cache.bytes)
        yield node_pb2.WarmProgress(stage="done", done=1, total=1)

    async def BenchmarkModel(
        self, request: node_pb2.BenchmarkModelRequest, context: Context
    ) -> AsyncIterator[node_pb2.BenchmarkProgress]:
        """Measure a model's speed here, tell each measurement, and keep the last one."""
        model = cid_from_wire(request.model)
        signatures = [cid_from_wire(raw) for raw in request.signatures]
        told: asyncio.Queue[node_pb2.BenchmarkProgress | None] = asyncio.Queue()

        def tell(stage: str, done: int, total: int) -> None:
            told.put_nowait(node_pb2.BenchmarkProgress(stage=stage, done=done, total=total))

        def measured(speed: Speed) -> None:
            told.put_nowait(node_pb2.BenchmarkProgress(stage="measure", speed=speed_to_wire(speed)))

        measuring = asyncio.create_task(
            self._warmer.measure(model, signatures, request.batch_rows, request.seconds, tell, measured)
        )
        async for progress in _told(told, measuring):
            yield progress
        speed = measuring.result()
        self._parts.measured(speed)
        yield node_pb2.BenchmarkProgress(stage="done", done=1, total=1, speed=speed_to_wire(speed))

    async def Drain(self, request: node_pb2.DrainRequest, context: Context) -> node_pb2.DrainReply:
        """Take no new sessions, hand back what waits, finish what runs; answer when idle."""
        finished, handed_back = await self.drain(request.timeout_ms / 1000 or None)
        return node_pb2.DrainReply(finished=finished, handed_back=handed_back)

    async def drain(self, timeout_s: float | None = None) -> tuple[int, int]:
        """Drain for good; give how many tasks were finished and how many handed back.

        Args:
            timeout_s: sessions still at work after this many seconds are cut; None: they are waited for.
        """
        self.draining = True
        now = asyncio.get_running_loop().time
        deadline = None if timeout_s is None else now() + timeout_s
        streams = list(self._streams)
        before = sum(stream.open_tasks for stream in streams)
        drains = [asyncio.create_task(stream.drain()) for stream in streams]
        if drains:
            await asyncio.wait(drains, timeout=timeout_s)
        handed_back = sum(task.result() for task in drains if task.done() and not task.cancelled())
        for task in drains:
            task.cancel()
        cut_off = sum(stream.open_tasks for stream in streams)
        for stream in streams:
            stream.end(_END)
        last = now() + _LAST_IDLE_S if deadline is None else max(deadline, now() + _LAST_WORDS_S)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(last):
                await self._idle.wait()
        return max(0, before - handed_back - cut_off), handed_back

    @property
    def sessions(self) -> int:
        """Tell how many sessions are open."""
        return len(self._streams)

    @property
    def tasks(self) -> int:
        """Tell how many tasks are not answered yet."""
        return sum(stream.open_tasks for stream in self._streams)

    async def hand_back(self, reason: str) -> None:
        """End all sessions because the node was closed: what waits is handed back, what runs is finished first."""
        streams = list(self._streams)
        await asyncio.gather(*(stream.drain(reason) for stream in streams))
        for stream in streams:
            stream.end(Cut(NodeBusy.code, reason))

    def check_trust(self) -> None:
        """Cut the sessions whose signers or publishers are not trusted any more: the roster has changed."""
        for stream, opened in list(self._streams.items()):
            cut = self._distrusted(opened, stream.lane.steps)
            if cut:
                log.warning("batch %s: cut off: %s", opened.grant.batch, cut.reason)
                stream.end(cut)

    def _no_longer(self, opened: _Session, steps: Sequence[ReadyStep]) -> Cut | None:
        """Say why a session that has become ready may not begin after all."""
        closed = self._parts.controls().closed(self._parts.local_time())
        if self.draining:
            return _END
        return Cut(NodeBusy.code, closed) if closed else self._distrusted(opened, steps)

    def _distrusted(self, opened: _Session, steps: Sequence[ReadyStep]) -> Cut | None:
        try:
            self._parts.trust.check(opened.grant, opened.signer)
        except Forbidden as error:
            return Cut(error.code, error.message)
        if not self._parts.plans.still_allowed(steps):
            return Cut(Forbidden.code, "the publisher of a model of this batch is not trusted any more")
        return None

    async def _open(
        self, asked: OpenRequested, caller: Peer | None, steps: list[ReadyStep], runners: list[Runner]
    ) -> _Session:
        """Check an Open and make everything ready; what was taken is in `steps` and `runners` even on failure."""
        parts = self._parts
        if self.draining or self._opening > MAX_SESSIONS:
            raise NodeBusy(_END.reason if self.draining else f"{MAX_SESSIONS} sessions are open")
        if asked.version is None:
            raise ProtocolError("no common version of the work protocol", hint="update DIM")
        now_ms = time.time_ns() // 1_000_000
        grant, signer = parts.trust.open_grant(asked.grant, now_ms, caller.name if caller else "")
        key = (grant.network, grant.batch)
        # A newer run of a batch takes the place of the older one, so that one does not count.
        own = sum((each.grant.network, each.grant.batch) == key for each in self._streams.values())
        parts.controls().admit(grant.owner, self._opening - 1 - own, parts.local_time())
        self._admit_signer(signer, key)
        await asyncio.to_thread(parts.epochs.claim, grant, now_ms)
        opened = _Session(grant, signer, "")
        if self._newest.get(key, (0, None))[0] > grant.epoch:
            raise StaleEpoch(f"a newer run has taken batch {grant.batch}")
        self._newest[key] = (grant.epoch, opened.token)
        for stream in list(self._streams):
            if (stream.grant.network, stream.grant.batch) == key:
                stream.end(Cut(StaleEpoch.code, f"a newer run has taken batch {grant.batch}"))
        try:
            opened.numerics, ready = await parts.plans.read(asked.plan, parts.numerics)
            steps += ready
            await reserve(parts.runners, ready, runners)
        except BaseException:
            self._forget(opened)
            raise
        return opened

    def _admit_signer(self, signer: bytes, key: tuple[str, str]) -> None:
        """See that a signer holds no more sessions than the roster allows it; an older run of the batch does not count.

        Raises:
            QuotaExceeded: it does.
        """
        most = self._parts.trust.max_sessions(signer)
        held = [
            each
            for each in self._streams.values()
            if each.signer == signer and (each.grant.network, each.grant.batch) != key
        ]
        if most is not None and len(held) >= most:
            raise QuotaExceeded(f"{len(held)} sessions are open, and the roster allows {most} at a time")

    def _forget(self, opened: _Session) -> None:
        """Forget that a session was its batch's newest, unless a newer one has come; the epoch stays on the disk."""
        key = (opened.grant.network, opened.grant.batch)
        if self._newest.get(key, (0, None))[1] is opened.token:
            del self._newest[key]

    def _begin(self) -> None:
        self._opening += 1
        self._idle.clear()

    def _finish(self) -> None:
        self._opening -= 1
        if not self._opening:
            self._idle.set()


async def _told(told: asyncio.Queue[Progress | None], working: asyncio.Task[Any]) -> AsyncIterator[Progress]:
    """Give what a task tells until it ends, and raise what it raises; the task ends with the caller."""
    working.add_done_callback(lambda task: told.put_nowait(None))
    try:
        while (progress := await told.get()) is not None:
            yield progress
        await working
    finally:
        working.cancel()


async def _say_alive(session: NodeSession, send: Callable[[node_pb2.NodeMessage], Any]) -> None:
    """Keep the dispatcher patient while a model is fetched and loaded."""
    while True:
        await asyncio.sleep(KEEP_ALIVE_S)
        await send(session.keep_alive())
