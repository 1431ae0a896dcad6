"""One node of one batch: its work stream, opened again after a loss, and the batch's data on both sides of it.

Three tasks serve an open stream: one reads, one claims and sends (`TaskPump`), one fetches outputs (`OutputCollector`).
All choices are the assignment's, all rules of the stream the session's; what is here is waiting and writing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import grpc

from dim_pipelines.dispatch.batchwork import Batchwork, OwnFailure, blame
from dim_pipelines.dispatch.collector import OutputCollector
from dim_pipelines.dispatch.node_client import NodeClient, WorkCall
from dim_pipelines.dispatch.task_pump import TaskPump
from dim_pipelines.domain.events import TaskDone, TaskFailed
from dim_pipelines.errors import (
    AccessError,
    ConfigurationError,
    CoordinationError,
    DimError,
    InputError,
    NodeBusy,
    NodeRefused,
    NodeUnreachable,
    ProtocolError,
    QuotaExceeded,
)
from dim_pipelines.scheduling.feasibility import ANY
from dim_pipelines.scheduling.retry import Failure
from dim_pipelines.wire.session import (
    CreditGranted,
    DispatcherEvent,
    DispatcherSession,
    SessionOpened,
    SessionRefused,
    State,
    TasksAnswered,
)
from dim_pipelines.wire.status import from_failure, from_rpc_error
from dim_pipelines.wire.v1 import node_pb2

SUSPECT_S: Final = 3.0
"""Seconds of silence after which a node's tasks get a second copy elsewhere."""
LOST_S: Final = 10.0
"""Seconds of silence after which a node is given up and its tasks go back."""
_MAX_BACKOFF_S: Final = 10.0
_PARTING_S: Final = 0.4

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Recruit:
    """A node that a batch is to use.

    Attributes:
        id: what the node is known by.
        name: its name in this batch, unlike any other's.
        shared: it reads and writes this run worker's swarm.
        connect: gives a client of that very node, wherever it is now; raises DimError where it cannot.
    """

    id: str
    name: str
    shared: bool
    connect: Callable[[], Awaitable[NodeClient]]


class NodeLink:
    """The stream to one node.

    Attributes:
        id: what the node is known by, whatever it is called: a stream never goes to another.
        name: its name for people, and in the batch's books; it stays what it was when the batch first saw the node.
        numerics: the class it computes in; empty before it said so.
        error: why the node does not compute at the moment; None while it does, or is asked for the first time.
        ended: the node will not be asked again over this link.
        wanted: it was ended or drained by this side's wish, not by the node's.
        opened: it took a session, once at least.
        down_since: when it stopped computing, by the monotonic clock; None while it computes.
    """

    def __init__(self, recruit: Recruit, work: Batchwork) -> None:
        """Make the link of a node."""
        self.id, self.name = recruit.id, recruit.name
        self.numerics = ""
        self.error: DimError | None = None
        self.ended = self.wanted = self.opened = False
        self.down_since: float | None = None
        self._connect, self._shared, self._work = recruit.connect, recruit.shared, work
        self._hurry = asyncio.Event()
        self._session: DispatcherSession | None = None
        self._wake = asyncio.Event()
        self._collector = OutputCollector(recruit.name, recruit.shared, work)
        self._broken: asyncio.Future[None] | None = None
        self._is_joined = False
        self._pump = TaskPump(recruit.name, recruit.shared, work, self._collector, self._wake)
        self._writing = asyncio.Lock()

    @property
    def is_open(self) -> bool:
        """Whether tasks may be sent."""
        return self._session is not None and self._session.state is State.OPEN

    @property
    def is_struck_out(self) -> bool:
        """Whether the node gave so many wrong outputs that the batch uses it no more."""
        return self._collector.is_struck_out

    @property
    def is_draining(self) -> bool:
        """Whether it gets no new tasks."""
        return self._pump.drained is not None and not self.ended

    def silent_for(self, now: float) -> float:
        """Tell how long an existing stream has been silent, in seconds; 0 where there is none."""
        return 0.0 if self._session is None else self._session.silent_for(now)

    def wake(self) -> None:
        """Look again whether there is something to send."""
        self._wake.set()

    def cancel(self, shard: int) -> None:
        """Stop the copies of a shard on this node."""
        self._pump.cancels.append(shard)
        self._wake.set()

    def lose(self, why: str) -> None:
        """Give the stream up; another is tried."""
        self._break(NodeUnreachable(why))

    def drain(self, why: str) -> None:
        """Send no new tasks; the link ends when those that run are answered."""
        self._pump.drained, self.wanted = NodeRefused(why), True
        self._work.assignment.drain(self.name)
        self._hurry.set()
        self._wake.set()

    def resume(self) -> None:
        """Send tasks again, where the link was not cut or ended meanwhile."""
        if self.ended or (self._broken is not None and self._broken.done()):
            return
        self._pump.drained, self.wanted = None, False
        self._wake.set()

    def cut(self, why: str) -> None:
        """End the link now; what runs on the node is cancelled."""
        self._pump.drained, self.wanted = NodeRefused(why), True
        self._hurry.set()
        self._break(self._pump.drained)

    def hurry(self) -> None:
        """Try again now, where the link waits after a loss: the node is said to be there."""
        self._hurry.set()

    def _break(self, error: DimError) -> None:
        if self._broken is not None and not self._broken.done():
            self._broken.set_exception(error)

    async def run(self) -> None:
        """Serve the node until it refuses for good; a loss is followed by another try, with growing pauses."""
        tries = 0
        while not self.ended:
            began, good = time.monotonic(), self._collector.good
            was_open = False
            try:
                if self._pump.drained is not None:
                    raise self._pump.drained
                try:
                    await self._serve()
                finally:
                    was_open, self._is_joined = self._is_joined, False
            except (CoordinationError, OwnFailure) as error:
                self._work.stop(error.__cause__ if isinstance(error, OwnFailure) and error.__cause__ else error)
                return
            except DimError as error:
                self.error = error
                self.ended = _is_final(error) or self._pump.drained is not None or self._collector.is_struck_out
                if was_open and not self.wanted and isinstance(error, (NodeUnreachable, ProtocolError)):
                    self._work.node_lost(self.name, error.message)
            if self._collector.good > good:
                tries, self.down_since = 0, None
            if self.down_since is None:
                self.down_since = time.monotonic() if self._collector.good > good else began
            # what was cut by our own wish costs its shards no attempt
            why = self.error.message if self.error else "lost"
            self._work.node_left(self.name, Failure("node_unreachable", why, handed_back=self.wanted))
            if not self.ended:
                tries += 1
                _log.info("node %s: %s; trying again", self.name, self.error)
                # full jitter: nodes that went down together do not come back together
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(random.uniform(0.5, 1.0) * min(0.1 * 2**tries, _MAX_BACKOFF_S)):
                        await self._hurry.wait()
                self._hurry.clear()

    async def _serve(self) -> None:
        self._broken = asyncio.get_running_loop().create_future()
        client = await self._prepared(self._broken)
        self._session = session = DispatcherSession(time.monotonic())
        self._collector.begin(client)
        call = client.work()
        parts: list[asyncio.Future[Any]] = [self._broken]
        try:
            await self._write(call, session.open(self._work.grant(), self._work.plan))
            parts += [
                asyncio.ensure_future(part)
                for part in (
                    self._read(call, session),
                    self._pump.run(client, session, partial(self._write, call)),
                    self._collector.run(self._wake),
                    self._beat(call),
                )
            ]
            done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_EXCEPTION)
            failed = [part for part in parts if part in done]
            await next(part for part in failed if part.exception() is not None)
        finally:
            await self._part(call, session, parts)

    async def _prepared(self, broken: asyncio.Future[None]) -> NodeClient:
        """Reach the node and bring it what every task needs; a cut link does not wait for that."""
        preparing = asyncio.ensure_future(self._prepare())
        either: set[asyncio.Future[Any]] = {preparing, broken}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if broken.done():
                await broken
            return await preparing
        finally:
            if not preparing.done():
                preparing.cancel()
                await asyncio.wait({preparing})
            for part in either:
                if part.done() and not part.cancelled():
                    part.exception()  # the one that counts was raised

    async def _prepare(self) -> NodeClient:
        client = await self._connect()
        await blame(self._work.data.prepare(client, self._shared))
        return client

    async def _part(self, call: WorkCall, session: DispatcherSession, parts: list[asyncio.Future[Any]]) -> None:
        """End the stream: what runs on the node is cancelled, and everything here ends before this returns."""
        reading, serving = parts[1:2], parts[2:]
        for part in serving:
            part.cancel()
        if serving:
            await asyncio.wait(serving)
        # the reader goes last: cancelling a read cancels the call, and the node would never see the Cancel
        with contextlib.suppress(TimeoutError, DimError):
            async with asyncio.timeout(_PARTING_S):
                if session.state is State.OPEN and session.open_tasks and not call.done():
                    await self._write(call, session.cancel())
                if not call.done():
                    await call.done_writing()
        call.cancel()
        for part in reading:
            part.cancel()
            await asyncio.wait([part])
        for part in parts:
            if part.done() and not part.cancelled():
                part.exception()  # the first one was raised; the others follow from it
        session.close()
        self._session = None

    async def _read(self, call: WorkCall, session: DispatcherSession) -> None:
        while True:
            try:
                message = await call.read()
            except grpc.aio.AioRpcError as error:
                raise from_rpc_error(error) from error
            if not isinstance(message, node_pb2.NodeMessage):  # grpc.aio.EOF, which the stubs do not know
                raise NodeUnreachable("it ended the work stream")
            for event in session.receive(message, time.monotonic()):
                self._on_event(event)

    def _on_event(self, event: DispatcherEvent) -> None:
        match event:
            case TasksAnswered(outcomes):
                now = time.monotonic()
                for outcome in outcomes:
                    self._on_outcome(outcome, now)
                self._wake.set()
            case CreditGranted():
                self._wake.set()
            case SessionOpened(_, _, numerics):
                self._on_opened(numerics)
            case SessionRefused(code, reason):
                raise from_failure(code, reason)

    def _on_opened(self, numerics: str) -> None:
        if self._work.numerics not in (ANY, numerics):
            raise NodeRefused(f"it computes in numerics class {numerics}, the batch is bound to {self._work.numerics}")
        self.error, self.numerics = None, numerics
        self.opened = self._is_joined = True
        self._work.assignment.join(self.name)
        self._wake.set()

    def _on_outcome(self, outcome: TaskDone | TaskFailed, now: float) -> None:
        if isinstance(outcome, TaskFailed):
            failure = Failure(outcome.code, outcome.message, outcome.handed_back)
            self._work.task_failed(self.name, outcome, failure)
            return
        if not self._work.assignment.computed(self.name, outcome.shard, outcome.attempt, now):
            return  # another copy was first
        if outcome.row_errors:
            first = outcome.row_errors[0]
            self._work.task_failed(self.name, outcome, Failure("input", f"row {first.row}: {first.reason}"))
            return
        self._collector.add(outcome)

    async def _beat(self, call: WorkCall) -> None:
        while True:
            await asyncio.sleep(1.0)
            if self._session is not None and self._session.state in (State.OPENING, State.OPEN):
                await self._write(call, self._session.keep_alive())

    async def _write(self, call: WorkCall, message: node_pb2.DispatcherMessage) -> None:
        try:
            async with self._writing:  # gRPC takes one write at a time
                await call.write(message)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error
        except (asyncio.InvalidStateError, grpc.aio.UsageError) as error:
            raise NodeUnreachable("the work stream has ended") from error


def _is_final(error: DimError) -> bool:
    if isinstance(error, QuotaExceeded):
        return False
    return isinstance(error, (AccessError, ConfigurationError, InputError, NodeRefused))


def is_waiting(error: DimError | None) -> bool:
    """Tell whether a node only wants to be asked later, however long that takes."""
    return isinstance(error, (NodeBusy, QuotaExceeded))
