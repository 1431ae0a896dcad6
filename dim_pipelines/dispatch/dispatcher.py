"""The dispatcher of one batch: its links to nodes, and the loop that watches over them.

Shards wait here, never in a node's queue. The dispatcher decides nothing by itself: `scheduling` does.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final

from dim_pipelines.dispatch.candidates import describe_wait
from dim_pipelines.dispatch.node_link import LOST_S, SUSPECT_S, NodeLink, Recruit, is_waiting
from dim_pipelines.dispatch.tallies import Tallies
from dim_pipelines.dispatch.transfer import DataPath
from dim_pipelines.domain.cid import Cid
from dim_pipelines.domain.events import RowError, ShardDone, Task, TaskDone, TaskFailed
from dim_pipelines.errors import AccessError, NoFeasibleNode
from dim_pipelines.scheduling.assignment import Assignment, GivenUp
from dim_pipelines.scheduling.retry import Failure, is_own_fault

PATIENCE_S: Final = 5.0
"""Seconds that a batch without a working node waits for one to come back."""
_TICK_S: Final = 0.25
_LATE_S: Final = 1.0
_SAY_S: Final = 2.0
"""Seconds without a node that computes after which the batch says what it waits for."""
_NODES_HINT: Final = "see that the nodes run: dim node start; what is finished is kept: dim resume"
_TRUST_HINT: Final = "let the node trust the key that it names: dim node start --trust KEY"


class ShardGivenUp(Exception):
    """A shard will not be tried again.

    Attributes:
        given_up: which, where and why.
        row_error: the row that the node named, where it named one.
    """

    def __init__(self, given_up: GivenUp, row_error: RowError | None) -> None:
        """Make the error."""
        super().__init__(given_up.failure.message)
        self.given_up = given_up
        self.row_error = row_error


class Dispatcher:
    """Brings the waiting shards of a batch to its nodes until all are done."""

    def __init__(
        self,
        assignment: Assignment,
        data: DataPath,
        *,
        grant: Callable[[], bytes],
        plan: Cid,
        numerics: str,
        task: Callable[[int, int], Task],
        on_done: Callable[[ShardDone], None],
        ahead: int = 16,
        patience_s: float | None = None,
    ) -> None:
        """Make a dispatcher; nothing happens before `run`. Nodes are added and taken away at any time.

        Args:
            assignment: the shards.
            data: brings inputs and takes outputs.
            grant: makes an encoded SignedGrant, which each stream gets fresh: a batch may outlive one.
            plan: CID of the plan block.
            numerics: the class each node must compute in, or `any`.
            task: makes the task of (shard, attempt).
            on_done: is told of each shard when it is done, once.
            ahead: shards whose input is brought to a node before it has credit for them.
            patience_s: seconds to wait when no node works; `PATIENCE_S` when left out.
        """
        self.assignment, self.data = assignment, data
        self.grant, self.plan, self.numerics, self.ahead = grant, plan, numerics, ahead
        self._make_task, self._on_done = task, on_done
        self._patience = PATIENCE_S if patience_s is None else patience_s
        self._links: dict[str, NodeLink] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._absent: dict[str, str] = {}
        self._may_come = False
        self._hoped_at = time.monotonic()
        self._silent: tuple[str, ...] = ()
        self.tallies = Tallies()
        self.on_lost: Callable[[str, str], None] | None = None
        self.on_waits: Callable[[str], None] | None = None
        self._working_at = time.monotonic()
        self._waits = ""
        self._row_errors: dict[int, RowError] = {}
        self._ended: asyncio.Future[None] | None = None

    async def run(self) -> None:
        """Dispatch until every shard is done.

        Cancelling it stops the nodes within a second.

        Raises:
            ShardGivenUp: a shard has failed for good.
            NoFeasibleNode: no node is left; carries each node's reason.
            StaleEpoch: a node knows of a newer run.
            ContentError: the run worker's own store failed.
        """
        if not self.assignment.remaining:
            return
        self._ended = asyncio.get_running_loop().create_future()
        self._hoped_at = self._working_at = time.monotonic()
        for link in self._links.values():
            self._start(link.run())
        self._start(self._watch())
        try:
            await self._ended
        finally:
            tasks = set(self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    @property
    def links(self) -> Mapping[str, NodeLink]:
        """The nodes of the batch so far by name, those that have ended included."""
        return self._links

    def add_node(self, recruit: Recruit) -> None:
        """Use another node from now on; one of that name must have ended."""
        before = self._links.get(recruit.name)
        link = self._links[recruit.name] = NodeLink(recruit, self)
        if before is not None and before.error is not None and not before.wanted:
            link.error = before.error  # it has refused already: no hope rests on it before it takes a session
        self._expect()
        self.tallies.begin(recruit.name)
        if self._ended is not None and not self._ended.done():
            self._start(link.run())

    def others(self, absent: Mapping[str, str], may_come: bool) -> None:
        """Note the pool's other nodes.

        Args:
            absent: name → why it is not used, for the error.
            may_come: one of them, or another, may be added soon.
        """
        self._absent, self._may_come = dict(absent), may_come

    def silent(self) -> tuple[str, ...]:
        """Name the nodes that have said nothing for `SUSPECT_S`."""
        return self._silent

    def task(self, shard: int, attempt: int) -> Task:
        """Make a task."""
        return self._make_task(shard, attempt)

    def shard_done(self, done: ShardDone) -> None:
        """Note an accepted output; other copies of the shard are cancelled."""
        if done.shard in self._row_errors:
            del self._row_errors[done.shard]
        if not self.assignment.is_open(done.shard):
            return
        copies = self.assignment.done(done.shard)
        began = max((copy.since for copy in copies if copy.node == done.node), default=0.0)
        self.tallies.good(done.node, done.rows)
        for copy in copies:
            if copy.node != done.node and copy.node in self._links:
                self._links[copy.node].cancel(done.shard)
                if copy.since < began:
                    self.tallies.late(copy.node, f"shard {done.shard} was finished elsewhere, later begun")
        self._on_done(done)
        if not self.assignment.remaining and self._ended is not None and not self._ended.done():
            self._ended.set_result(None)

    def task_failed(self, node: str, outcome: TaskDone | TaskFailed, failure: Failure) -> None:
        """Note a failed task."""
        if isinstance(outcome, TaskDone) and outcome.row_errors:
            self._row_errors[outcome.shard] = outcome.row_errors[0]
        if is_own_fault(failure):
            self.tallies.bad(node, failure.message)
        now = time.monotonic()
        given_up = self.assignment.failed(node, outcome.shard, outcome.attempt, failure, now)
        if given_up is not None:
            self.stop(ShardGivenUp(given_up, self._row_errors.get(outcome.shard)))
        self._wake_all()

    def node_left(self, node: str, failure: Failure) -> None:
        """Note that a node is gone; what it had goes back at once."""
        self._expect()
        for given_up in self.assignment.leave(node, time.monotonic(), failure):
            self.stop(ShardGivenUp(given_up, None))
        self._wake_all()

    def node_lost(self, node: str, why: str) -> None:
        """Note that an open session was lost, by no wish of this side."""
        self.tallies.bad(node, why)
        if self.on_lost is not None:
            self.on_lost(node, why)

    def stop(self, error: BaseException) -> None:
        """End the batch with an error; the first one counts."""
        if self._ended is not None and not self._ended.done():
            self._ended.set_exception(error)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._task_ended)

    def _expect(self) -> None:
        self.assignment.expect(name for name, link in self._links.items() if not link.ended and not link.is_draining)

    def _wake_all(self) -> None:
        for link in self._links.values():
            link.wake()

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.stop(error)  # a bug: no task ends with an error of its own

    async def _watch(self) -> None:
        """Look for silent nodes, wake those that wait for a straggler's copy, and end when no node is left."""
        last = time.monotonic()
        while True:
            await asyncio.sleep(_TICK_S)
            now = time.monotonic()
            late, last = now - last > _TICK_S + _LATE_S, now
            if late:
                continue  # this process stood still: what the nodes said meanwhile is not read yet
            silent = tuple(link.name for link in self._links.values() if link.silent_for(now) >= SUSPECT_S)
            for name in set(silent) - set(self._silent):
                self.tallies.late(name, f"it was silent for {SUSPECT_S:.0f} s")
            self._silent = silent
            for link in self._links.values():
                if link.silent_for(now) >= LOST_S:
                    link.lose(f"it has been silent for {link.silent_for(now):.0f} s")
            self._tell_waits(now)
            self._check_hope(now)
            self._wake_all()

    def _check_hope(self, now: float) -> None:
        if any(self._is_hopeful(link, now) for link in self._links.values()):
            self._hoped_at = now
            return
        if self._may_come and now - self._hoped_at < self._patience:
            return
        reasons = self._reasons()
        forbidden = any(isinstance(link.error, AccessError) for link in self._links.values())
        self.stop(NoFeasibleNode(reasons=reasons, hint=_TRUST_HINT if forbidden else _NODES_HINT))

    def _reasons(self) -> dict[str, str]:
        met = {name: link.error.message for name, link in self._links.items() if link.error is not None}
        return {**self._absent, **met}

    def _tell_waits(self, now: float) -> None:
        """Tell why no node computes, when that has lasted or is different; and that one does again."""
        if any(link.is_open and link.name not in self._silent for link in self._links.values()):
            self._working_at = now
        waits = ""
        if now - self._working_at >= _SAY_S:
            opening = {name: "it is getting ready" for name, link in self._links.items() if not link.ended}
            silent = dict.fromkeys(self._silent, "it is silent")
            waits = describe_wait({**opening, **self._reasons(), **silent})
        if waits != self._waits:
            self._waits = waits
            if self.on_waits is not None:
                self.on_waits(waits)

    def _is_hopeful(self, link: NodeLink, now: float) -> bool:
        """Tell whether a node computes, or will as far as anybody can tell."""
        if link.ended:
            return False
        if link.is_open or link.error is None or is_waiting(link.error):
            return True
        return link.down_since is not None and now - link.down_since < self._patience
