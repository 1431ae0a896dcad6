"""The dispatcher of one batch: its links to nodes, and the loop that watches over them.

Shards wait here, never in a node's queue. The dispatcher decides nothing by itself: `scheduling` does.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Final

from dim_pipelines.dispatch.node_client import NodeClient
from dim_pipelines.dispatch.node_link import LOST_S, SUSPECT_S, NodeLink, is_waiting
from dim_pipelines.dispatch.transfer import DataPath
from dim_pipelines.domain.cid import Cid
from dim_pipelines.domain.events import RowError, ShardDone, Task, TaskDone, TaskFailed
from dim_pipelines.errors import AccessError, NoFeasibleNode
from dim_pipelines.scheduling.assignment import Assignment, GivenUp
from dim_pipelines.scheduling.retry import Failure

PATIENCE_S: Final = 5.0
"""Seconds that a batch without a working node waits for one to come back."""
_TICK_S: Final = 0.25
_LATE_S: Final = 1.0
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
        nodes: Mapping[str, tuple[NodeClient, bool]],
        assignment: Assignment,
        data: DataPath,
        *,
        grant: Callable[[], bytes],
        plan: Cid,
        numerics: str,
        task: Callable[[int, int], Task],
        on_done: Callable[[ShardDone], None],
        infeasible: Mapping[str, str] | None = None,
        ahead: int = 16,
        patience_s: float | None = None,
    ) -> None:
        """Make a dispatcher; nothing happens before `run`.

        Args:
            nodes: feasible nodes by name: the client, and whether the node shares the run worker's swarm.
            assignment: the shards.
            data: brings inputs and takes outputs.
            grant: makes an encoded SignedGrant, which each stream gets fresh: a batch may outlive one.
            plan: CID of the plan block.
            numerics: the class each node must compute in, or `any`.
            task: makes the task of (shard, attempt).
            on_done: is told of each shard when it is done, once.
            infeasible: why the other nodes of the pool are not among `nodes`, for the error.
            ahead: shards whose input is brought to a node before it has credit for them.
            patience_s: seconds to wait when no node works; `PATIENCE_S` when left out.
        """
        self.assignment, self.data = assignment, data
        self.grant, self.plan, self.numerics, self.ahead = grant, plan, numerics, ahead
        self._make_task, self._on_done = task, on_done
        self._infeasible, self._patience = dict(infeasible or {}), PATIENCE_S if patience_s is None else patience_s
        self._links = {name: NodeLink(name, client, shared, self) for name, (client, shared) in nodes.items()}
        self._silent: tuple[str, ...] = ()
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
        self.assignment.expect(self._links)
        tasks = [asyncio.create_task(link.run()) for link in self._links.values()]
        tasks.append(asyncio.create_task(self._watch()))
        for task in tasks:
            task.add_done_callback(self._task_ended)
        try:
            await self._ended
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

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
        for copy in self.assignment.done(done.shard):
            if copy.node != done.node and copy.node in self._links:
                self._links[copy.node].cancel(done.shard)
        self._on_done(done)
        if not self.assignment.remaining and self._ended is not None and not self._ended.done():
            self._ended.set_result(None)

    def task_failed(self, node: str, outcome: TaskDone | TaskFailed, failure: Failure) -> None:
        """Note a failed task."""
        if isinstance(outcome, TaskDone) and outcome.row_errors:
            self._row_errors[outcome.shard] = outcome.row_errors[0]
        now = time.monotonic()
        given_up = self.assignment.failed(node, outcome.shard, outcome.attempt, failure, now)
        if given_up is not None:
            self.stop(ShardGivenUp(given_up, self._row_errors.get(outcome.shard)))
        self._wake_all()

    def node_left(self, node: str, failure: Failure) -> None:
        """Note that a node is gone; what it had goes back at once."""
        self.assignment.expect(name for name, link in self._links.items() if not link.ended)
        for given_up in self.assignment.leave(node, time.monotonic(), failure):
            self.stop(ShardGivenUp(given_up, None))
        self._wake_all()

    def stop(self, error: BaseException) -> None:
        """End the batch with an error; the first one counts."""
        if self._ended is not None and not self._ended.done():
            self._ended.set_exception(error)

    def _wake_all(self) -> None:
        for link in self._links.values():
            link.wake()

    def _task_ended(self, task: asyncio.Task[None]) -> None:
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
            self._silent = tuple(link.name for link in self._links.values() if link.silent_for(now) >= SUSPECT_S)
            for link in self._links.values():
                if link.silent_for(now) >= LOST_S:
                    link.lose(f"it has been silent for {link.silent_for(now):.0f} s")
            self._check_hope(now)
            self._wake_all()

    def _check_hope(self, now: float) -> None:
        reasons = dict(self._infeasible)
        for link in self._links.values():
            if link.is_open or link.error is None or (not link.ended and is_waiting(link.error)):
                return
            if not link.ended and link.down_since is not None and now - link.down_since < self._patience:
                return
            reasons[link.name] = link.error.message
        forbidden = any(isinstance(link.error, AccessError) for link in self._links.values())
        self.stop(NoFeasibleNode(reasons=reasons, hint=_TRUST_HINT if forbidden else _NODES_HINT))
