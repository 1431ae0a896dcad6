"""NodeService: opens sessions, describes the node, warms models, drains.

Opening is where a stranger's wishes meet the node's rules, in this order: grant, epoch, plan, signatures,
engine and numerics, disk, device memory, and only then the model's first byte reaches the engine process.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final

import grpc
from grpc.aio import EOF  # type: ignore[attr-defined]

from dim_pipelines.content.store import ContentStore
from dim_pipelines.domain.cid import Cid
from dim_pipelines.domain.grant import Grant
from dim_pipelines.domain.node import NodeDescription
from dim_pipelines.errors import ContentUnavailable, DimError, NodeBusy, ProtocolError, StaleEpoch
from dim_pipelines.identity.authority import verify_grant
from dim_pipelines.node.admission import DoesNotFit
from dim_pipelines.node.epochs import Epochs
from dim_pipelines.node.model_cache import ModelCache
from dim_pipelines.node.plans import PlanReader, ReadyStep
from dim_pipelines.node.runner import Runner
from dim_pipelines.node.work import KEEP_ALIVE_S, Cut, WorkStream
from dim_pipelines.telemetry.metrics import NodeMetrics
from dim_pipelines.wire.codec import cid_from_wire, description_to_wire
from dim_pipelines.wire.session import NodeSession, OpenRequested
from dim_pipelines.wire.v1 import node_pb2, node_pb2_grpc

log = logging.getLogger(__name__)

OPEN_TIMEOUT_S: Final = 600.0
"""How long a session may take to open: a model has to be fetched and loaded."""
FIRST_MESSAGE_S: Final = 10.0
"""How long a stream may be silent before its Open."""
MAX_SESSIONS: Final = 64
"""The most sessions at a time."""
_LAST_IDLE_S: Final = 30.0  # how long a drain without a deadline waits for sessions that were cut or are opening
_LAST_WORDS_S: Final = 0.5  # how long a drain waits at least until sessions that it cut have said so
_END: Final = Cut(NodeBusy.code, "the node is shutting down")

Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(frozen=True, slots=True)
class NodeParts:
    """What the service is made of.

    Attributes:
        submitters: public keys whose grants are honoured.
        numerics: engine → numerics base class.
        describe: gives the description, without `draining`.
    """

    name: str
    store: ContentStore
    cache: ModelCache
    plans: PlanReader
    runners: Sequence[Runner]
    epochs: Epochs
    submitters: Collection[bytes]
    numerics: dict[str, str]
    metrics: NodeMetrics
    describe: Callable[[], NodeDescription]


class NodeServicer(node_pb2_grpc.NodeServiceServicer):
    """The node's side of every session."""

    def __init__(self, parts: NodeParts) -> None:
        """Serve with these parts."""
        self._parts = parts
        self._streams: set[WorkStream] = set()
        self._newest: dict[tuple[str, str], tuple[int, object]] = {}
        self._opening = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self.draining = False

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
                    grant, numerics, token = await self._open(events[0], steps, runners)
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
            stream = WorkStream(session, grant, steps, runners, self._parts.store, self._parts.metrics, send)
            if self._newest.get((grant.network, grant.batch), (0, None))[1] is not token:
                await send(session.refuse(StaleEpoch.code, f"a newer run has taken batch {grant.batch}"))
                return
            if self.draining:  # it began while the session was opening
                self._forget(grant, token)
                await send(session.refuse(_END.code, _END.reason))
                return
            self._streams.add(stream)  # from here on a drain finds it
            try:
                await send(session.opened(self._parts.name, numerics))
                await stream.run(receive)
            finally:
                self._streams.discard(stream)
                self._forget(grant, token)
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

        warming = asyncio.create_task(self._warm(model, signatures, max(1, request.batch_rows), tell))
        warming.add_done_callback(lambda task: told.put_nowait(None))
        try:
            while (progress := await told.get()) is not None:
                yield progress
            await warming
            yield node_pb2.WarmProgress(stage="done", done=1, total=1)
        finally:
            warming.cancel()

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

    async def _open(
        self, asked: OpenRequested, steps: list[ReadyStep], runners: list[Runner]
    ) -> tuple[Grant, str, object]:
        """Check an Open and make everything ready; what was taken is in `steps` and `runners` even on failure."""
        parts = self._parts
        if self.draining or self._opening > MAX_SESSIONS:
            raise NodeBusy("the node is shutting down" if self.draining else f"{MAX_SESSIONS} sessions are open")
        if asked.version is None:
            raise ProtocolError("no common version of the work protocol", hint="update DIM")
        now_ms = time.time_ns() // 1_000_000
        grant = verify_grant(asked.grant, parts.submitters, now_ms)
        await asyncio.to_thread(parts.epochs.claim, grant, now_ms)
        key, token = (grant.network, grant.batch), object()
        if self._newest.get(key, (0, None))[0] > grant.epoch:
            raise StaleEpoch(f"a newer run has taken batch {grant.batch}")
        self._newest[key] = (grant.epoch, token)
        for stream in list(self._streams):
            if (stream.grant.network, stream.grant.batch) == key:
                stream.end(Cut(StaleEpoch.code, f"a newer run has taken batch {grant.batch}"))
        try:
            numerics, ready = await parts.plans.read(asked.plan, parts.numerics)
            steps += ready
            await self._reserve(ready, runners)
        except BaseException:
            self._forget(grant, token)
            raise
        return grant, numerics, token

    def _forget(self, grant: Grant, token: object) -> None:
        """Forget that a session was its batch's newest, unless a newer one has come; the epoch stays on the disk."""
        if self._newest.get((grant.network, grant.batch), (0, None))[1] is token:
            del self._newest[grant.network, grant.batch]

    async def _reserve(self, steps: Sequence[ReadyStep], runners: list[Runner]) -> None:
        """Reserve device memory for the steps wherever they fit, and load them there.

        Raises:
            DoesNotFit: they fit on no device.
            EngineFailed: a model cannot be loaded.
        """
        refused: DoesNotFit | None = None
        for runner in self._parts.runners:
            admitted: list[str] = []
            try:
                for step in steps:
                    evicted = runner.memory.admit(step.key, step.batch_rows, step.model.bytes)
                    admitted.append(step.key)
                    await runner.unload(evicted)
            except BaseException as error:
                for key in admitted:
                    runner.memory.release(key)
                if not isinstance(error, DoesNotFit):
                    raise
                refused = error
                continue
            runners.append(runner)
            for step in steps:
                await runner.prepare(step)
        if not runners:
            raise refused or NodeBusy("this node has no device")

    async def _warm(
        self, model: Cid, signatures: Sequence[Cid], batch_rows: int, tell: Callable[[str, int, int], None]
    ) -> None:
        parts = self._parts
        tell("verify", 0, 1)
        await parts.plans.allowed(model, signatures)
        tell("verify", 1, 1)
        held = await parts.cache.acquire(model, parts.store, tell)
        step = ReadyStep(held, {}, batch_rows)
        runners: list[Runner] = []
        try:
            tell("load", 0, len(parts.runners))
            await self._reserve([step], runners)
            tell("load", len(runners), len(parts.runners))
            for done, runner in enumerate(runners):
                tell("warm", done, len(runners))
                await runner.warm(step)
        finally:
            for runner in runners:
                runner.memory.release(step.key)
            parts.plans.release([step])

    def _begin(self) -> None:
        self._opening += 1
        self._idle.clear()

    def _finish(self) -> None:
        self._opening -= 1
        if not self._opening:
            self._idle.set()


async def _say_alive(session: NodeSession, send: Callable[[node_pb2.NodeMessage], Any]) -> None:
    """Keep the dispatcher patient while a model is fetched and loaded."""
    while True:
        await asyncio.sleep(KEEP_ALIVE_S)
        await send(session.keep_alive())
