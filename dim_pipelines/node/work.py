"""One work stream on the node: the session's messages on one side, its lane on the other.

Three tasks live as long as the stream: one reads messages, one brings input shards from the store ahead of
the device, one stores outputs and answers. Answers travel as soon as nothing else is being stored, so they
are alone when tasks are long and together when tasks are short.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from dim_pipelines.content.store import Block, ContentStore
from dim_pipelines.content.unixfs import file_blocks, read_bytes
from dim_pipelines.domain.cid import RAW, Cid
from dim_pipelines.domain.dataset import LEAF_BYTES, MAX_SHARD_BYTES
from dim_pipelines.domain.events import Task, TaskDone, TaskFailed, Usage
from dim_pipelines.domain.grant import Grant
from dim_pipelines.errors import Cancelled, ContentError, DimError, InputError, NodeBusy, ProtocolError
from dim_pipelines.node.admission import credit_window
from dim_pipelines.node.lanes import Computed, Item, Lane
from dim_pipelines.node.plans import ReadyStep
from dim_pipelines.node.runner import Runner
from dim_pipelines.telemetry.metrics import NodeMetrics
from dim_pipelines.wire.session import CancelRequested, NodeSession, State, TaskKey, TasksReceived
from dim_pipelines.wire.v1 import node_pb2

log = logging.getLogger(__name__)

KEEP_ALIVE_S: Final = 1.0
"""How often the node says that it is there."""
SILENCE_S: Final = 30.0
"""After how long without a message the dispatcher is taken for gone."""
MAX_OUTCOMES: Final = 256
"""The most outcomes in one message."""
MAX_OUTCOME_BYTES: Final = 2 << 20
"""The most bytes of outcomes in one message; row errors are bounded, so that a single one is not larger."""
MAX_FLUSH_BYTES: Final = 64 << 20
"""About how many bytes of outputs are stored in one call."""
CREDIT_PARTS: Final = 4
"""Credit is given in parts of the window, so that short tasks come several in a message."""
MAX_WEIGHT: Final = 1000
"""The largest weight that a grant can give."""
PREFETCH_BYTES: Final = 128 << 20
"""How many bytes of inputs a session may have waiting, beyond the first."""

Send = Callable[[node_pb2.NodeMessage], Awaitable[None]]


Receive = Callable[[], Awaitable[node_pb2.DispatcherMessage | None]]
"""Waits for the dispatcher's next message; None at the end of the stream."""


@dataclass(frozen=True, slots=True)
class Cut:
    """Why the node ends a session: a code of `errors`, and the reason."""

    code: str
    reason: str


class WorkStream:
    """An opened session."""

    def __init__(
        self,
        session: NodeSession,
        grant: Grant,
        steps: Sequence[ReadyStep],
        runners: Sequence[Runner],
        store: ContentStore,
        metrics: NodeMetrics,
        send: Send,
    ) -> None:
        """Join the devices' loops; `run` serves the stream until it ends."""
        self.session = session
        self.grant = grant
        self.lane = Lane(grant.owner, min(max(grant.weight, 1), MAX_WEIGHT), steps, self._deliver)
        self.cut: Cut | None = None
        self._runners = runners
        self._store = store
        self._metrics = metrics
        self._send = send
        self._items: dict[TaskKey, Item] = {}
        self._to_fetch: asyncio.Queue[list[Item]] = asyncio.Queue()
        self._computed: list[Computed] = []
        self._answerable = asyncio.Event()
        self._cut_now = asyncio.Event()
        self._room = asyncio.Event()
        self._drained = asyncio.Event()
        self._draining = ""

    async def run(self, receive: Receive) -> None:
        """Serve until the dispatcher ends the stream, falls silent or breaks the protocol, or the node cuts it.

        Raises:
            ProtocolError: the dispatcher sent what it must not.
        """
        for runner in self._runners:
            runner.join(self.lane)
        self._metrics.sessions.inc()
        parts = [self._read(receive), self._fetch(), self._answer(), self._keep_alive(), self._cut_now.wait()]
        tasks = [asyncio.ensure_future(part) for part in parts]
        try:
            await self._grant()
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if self.cut and self.session.state is State.OPEN:
                await self._send(self.session.refuse(self.cut.code, self.cut.reason))
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._leave()

    def end(self, cut: Cut) -> None:
        """Cut the session off: the dispatcher gets `Refused` and its open tasks are void."""
        self.cut = self.cut or cut
        self._cut_now.set()

    async def drain(self, reason: str = "the node is shutting down") -> int:
        """Hand back what has not started, wait for what runs, and give the number of tasks handed back."""
        self._draining = reason
        waiting = [item for item in self.lane.waiting if not item.cancelled]
        self._give_up(waiting, NodeBusy(reason), handed_back=True)
        while self._items and not self._cut_now.is_set() and self.session.state is State.OPEN:
            self._drained.clear()
            await self._drained.wait()
        return len(waiting)

    @property
    def open_tasks(self) -> int:
        """Tell how many tasks are not answered yet."""
        return len(self._items)

    async def _read(self, receive: Receive) -> None:
        while (message := await receive()) is not None:
            for event in self.session.receive(message, time.monotonic()):
                if isinstance(event, TasksReceived):
                    self._take(event.tasks)
                elif isinstance(event, CancelRequested):
                    self._give_up([self._items[key] for key in event.keys if key in self._items], Cancelled())

    def _take(self, tasks: Sequence[Task]) -> None:
        items: list[Item] = []
        for task in tasks:
            item = Item(task)
            self._items[item.key] = item
            if task.step >= len(self.lane.steps):
                self._deliver([Computed(item, error=ProtocolError(f"the plan has no step {task.step}"))])
            elif len(task.inputs) != 1:
                self._deliver(
                    [Computed(item, error=InputError(f"a step takes one input, the task has {len(task.inputs)}"))]
                )
            else:
                items.append(item)
        if self._draining:
            self._give_up(items, NodeBusy(self._draining), handed_back=True)
            return
        self.lane.waiting.extend(items)
        self._to_fetch.put_nowait(items)

    def _give_up(self, items: Sequence[Item], error: DimError, *, handed_back: bool = False) -> None:
        """Answer items without computing them; what the engine makes of those it has is dropped."""
        computed: list[Computed] = []
        for item in items:
            if not item.cancelled:
                item.cancelled = True
                computed.append(Computed(item, error=error, handed_back=handed_back))
        self._deliver(computed)
        for runner in self._runners:
            runner.interrupt()

    async def _fetch(self) -> None:
        """Bring input shards in order, ahead of the device but within bounds."""
        while True:
            items = [item for item in await self._to_fetch.get() if not item.cancelled]
            small = [item for item in items if item.task.inputs[0].codec == RAW]
            for item in items:
                if item not in small:
                    await self._wait_for_room(item)
                    await self._fetch_one(item)
            await self._fetch_blocks(small)

    async def _fetch_blocks(self, items: Sequence[Item]) -> None:
        here = 0
        try:
            async for block in self._store.get_many([item.task.inputs[0] for item in items]):
                items[here].data = block.data
                here += 1
                self._ready()
        except DimError:
            for item in items[here:]:  # the one that failed and those behind it: each gets its own answer
                await self._fetch_one(item)

    async def _fetch_one(self, item: Item) -> None:
        if item.cancelled:
            return
        try:
            item.data = await read_bytes(self._store, item.task.inputs[0], limit=MAX_SHARD_BYTES)
        except DimError as error:
            item.error = error
        self._ready()

    async def _wait_for_room(self, item: Item) -> None:
        """Wait while enough is waiting before this item, so that large shards do not fill the memory."""
        while sum(len(other.data or b"") for other in self.lane.waiting) > PREFETCH_BYTES and not item.cancelled:
            self._room.clear()
            await self._room.wait()

    def _ready(self) -> None:
        for runner in self._runners:
            runner.wake()

    def _deliver(self, computed: list[Computed]) -> None:
        self._computed += computed
        self._room.set()
        if self._computed:
            self._answerable.set()

    async def _answer(self) -> None:
        """Store what was computed and answer it, all that there is at a time."""
        while True:
            await self._answerable.wait()
            some = self._some()
            if not self._computed:
                self._answerable.clear()
            outcomes = await self._stored(some)
            for together in messages(outcomes):
                await self._send(self.session.outcomes(together))
            for item in some:  # after they were sent: a drain waits until there are none
                self._items.pop(item.item.key, None)
            for code, count in Counter(item.error.code if item.error else "done" for item in some).items():
                self._metrics.tasks.labels(code).inc(count)
            self._drained.set()
            await self._grant()

    def _some(self) -> list[Computed]:
        size = 0
        for count, item in enumerate(self._computed):
            size += len(item.output or b"")
            if size > MAX_FLUSH_BYTES and count:
                some, self._computed = self._computed[:count], self._computed[count:]
                return some
        some, self._computed = self._computed, []
        return some

    async def _stored(self, computed: Sequence[Computed]) -> list[TaskDone | TaskFailed]:
        """Put the outputs into the store and give the outcomes.

        Nothing is pinned here: the dispatcher fetches an output as soon as it hears of it, and the store keeps
        what is younger than its grace.
        """
        blocks: list[Block] = []
        roots: list[Cid] = []
        for item in computed:
            made = _output_blocks(item.output) if item.output is not None else []
            blocks += made
            roots.append(made[-1].cid if made else Cid.of(RAW, b""))
        try:
            if blocks:
                await self._store.put(blocks)
        except ContentError as error:
            return [_failed(item, item.error or error) for item in computed]
        return [
            _failed(item, item.error) if item.error else _done(item, root)
            for item, root in zip(computed, roots, strict=True)
        ]

    async def _grant(self) -> None:
        """Ask for as many tasks as keep the devices busy."""
        if self._draining:
            return
        wanted = credit_window(self.lane.mean_ms, len(self._runners))
        n = wanted - self.session.credit - self.open_tasks
        if n > wanted // CREDIT_PARTS:
            await self._send(self.session.grant_credit(n))

    async def _keep_alive(self) -> None:
        while self.session.silent_for(time.monotonic()) < SILENCE_S:
            await self._send(self.session.keep_alive())
            await asyncio.sleep(KEEP_ALIVE_S)
            if time.time() * 1000 >= self.grant.not_after_ms:
                self.end(Cut(NodeBusy.code, "the grant has ended; open again with a fresh one"))
        log.warning("batch %s: the dispatcher has been silent for %.0f s", self.grant.batch, SILENCE_S)

    def _leave(self) -> None:
        for item in self._items.values():
            item.cancelled = True
        self.lane.waiting.clear()
        for runner in self._runners:
            runner.leave(self.lane)
            runner.interrupt()
        self.session.close()
        self._drained.set()
        self._metrics.sessions.dec()


def messages(outcomes: Sequence[TaskDone | TaskFailed]) -> Iterator[Sequence[TaskDone | TaskFailed]]:
    """Part outcomes into messages, by number and by size."""
    start, size = 0, 0
    for place, outcome in enumerate(outcomes):
        own = _wire_bytes(outcome)
        if place > start and (place - start == MAX_OUTCOMES or size + own > MAX_OUTCOME_BYTES):
            yield outcomes[start:place]
            start, size = place, 0
        size += own
    if outcomes:
        yield outcomes[start:]


def _wire_bytes(outcome: TaskDone | TaskFailed) -> int:
    """Give the most bytes that an outcome takes in a message: a character takes up to 4."""
    if isinstance(outcome, TaskFailed):
        return 100 + 4 * len(outcome.message)
    return 100 + sum(16 + 4 * len(error.reason) for error in outcome.row_errors)


def _output_blocks(output: bytes) -> list[Block]:
    """Give the blocks of an output shard, its root last."""
    if len(output) <= LEAF_BYTES:
        return [Block(Cid.of(RAW, output), output)]
    return list(file_blocks(output[start : start + LEAF_BYTES] for start in range(0, len(output), LEAF_BYTES)))


def _done(item: Computed, root: Cid) -> TaskDone:
    task = item.item.task
    usage = Usage(
        rows=item.rows,
        bytes_in=len(item.item.data or b""),
        bytes_out=len(item.output or b""),
        compute_ms=round(item.compute_us / 1000),
        peak_bytes=item.peak_bytes,
    )
    return TaskDone(task.shard, task.step, task.attempt, root, item.rows, usage, item.row_errors)


def _failed(item: Computed, error: DimError) -> TaskFailed:
    task = item.item.task
    message = error.message.splitlines()[0][:1000] if error.message else error.code
    return TaskFailed(task.shard, task.step, task.attempt, error.code, message, error.retryable, item.handed_back)
