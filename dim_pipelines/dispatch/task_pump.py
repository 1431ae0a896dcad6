"""Sends a node its tasks: claims them ahead, brings their inputs, and never sends more than the node has credit for.

All choices are the assignment's, all rules of the stream the session's; what is here is waiting and writing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Final

from dim_pipelines.dispatch.batchwork import Batchwork, blame
from dim_pipelines.dispatch.collector import OutputCollector
from dim_pipelines.dispatch.node_client import NodeClient
from dim_pipelines.errors import DimError
from dim_pipelines.scheduling.assignment import Assignment
from dim_pipelines.wire.session import DispatcherSession, State
from dim_pipelines.wire.v1 import node_pb2

TASKS_PER_MESSAGE: Final = 256
"""Tasks in one message, at most."""
STAGE_SHARDS: Final = 64
"""Shards whose input is brought in one call, at most."""
LOOK_SHARDS: Final = 2048
"""Shards about whose input a node is asked in one call."""
_STAGES: Final = 2

Write = Callable[[node_pb2.DispatcherMessage], Awaitable[None]]
"""Sends a message to the node."""


class TaskPump:
    """The way of tasks to one node; it outlives the node's streams.

    Attributes:
        cancels: shards whose copies on this node are to be stopped.
        drained: why the node gets no new tasks; None while it gets some.
    """

    def __init__(
        self, name: str, shared: bool, work: Batchwork, collector: OutputCollector, wake: asyncio.Event
    ) -> None:
        """Make the way to a node; arguments as of `NodeLink`, and what wakes it when there may be something to send."""
        self._name, self._shared, self._work = name, shared, work
        self._collector, self._wake = collector, wake
        self.cancels: list[int] = []
        self.drained: DimError | None = None
        self._window = 0
        self._looked = -1
        self._held: set[int] = set()

    async def run(self, client: NodeClient, session: DispatcherSession, write: Write) -> None:
        """Send cancels and tasks, and claim ahead, until cancelled.

        Args:
            client: the node.
            session: the stream's rules.
            write: sends a message.

        Raises:
            DimError: what `drained` holds, once nothing is left to be answered.
            NodeError: the node has failed.
            OwnFailure: the run worker's store has failed.
        """
        self.cancels.clear()
        self._looked, self._held = -1, set()
        staging: set[asyncio.Task[None]] = set()
        assignment = self._work.assignment
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                for task in [task for task in staging if task.done()]:
                    staging.remove(task)
                    task.result()
                if session.state is not State.OPEN:
                    continue
                if self.drained is None:
                    await self._look(client)
                if self.cancels:
                    shards, self.cancels = self.cancels, []
                    if {task.shard for task in session.open_tasks} & set(shards):
                        await write(session.cancel(shards))
                if self.drained is not None:
                    if not session.open_tasks and self._collector.is_idle:
                        raise self.drained
                    continue
                self._window = max(self._window, session.credit + len(session.open_tasks))
                claimed = self._claim(session, assignment) if len(staging) < _STAGES else []
                there = claimed if self._shared else [shard for shard in claimed if shard in self._held]
                assignment.ready(self._name, there)
                self._held.difference_update(there)
                for lacking, shards in self._to_bring(claimed, there):
                    staging.add(asyncio.create_task(self._stage(client, shards, lacking)))
                await self._send(session, assignment, write)
        finally:
            for task in staging:
                task.cancel()
            if staging:
                await asyncio.wait(staging)

    def _to_bring(self, claimed: list[int], there: list[int]) -> Iterator[tuple[bool, list[int]]]:
        """Give the shards to bring, some at a time, and whether the node was asked and has not got them."""
        skip = set(there)
        for lacking in (True, False):
            shards = [shard for shard in claimed if shard not in skip and (shard <= self._looked) is lacking]
            for start in range(0, len(shards), STAGE_SHARDS):
                yield lacking, shards[start : start + STAGE_SHARDS]

    def _claim(self, session: DispatcherSession, assignment: Assignment) -> list[int]:
        ahead = 0 if self._shared else min(self._work.ahead, self._window)
        in_hand = assignment.in_hand(self._name)
        wanted = session.credit + ahead - in_hand
        if wanted <= 0 or (in_hand and wanted < ahead // 2):
            return []  # what is ahead is brought in few large calls
        return assignment.claim(self._name, wanted, time.monotonic(), self._work.silent())

    async def _send(self, session: DispatcherSession, assignment: Assignment, write: Write) -> None:
        while session.credit and not self._collector.is_full:
            limit = min(session.credit, TASKS_PER_MESSAGE)
            taken = assignment.take(self._name, limit, time.monotonic())
            if not taken:
                return
            tasks = [self._work.task(item.shard, item.attempt) for item in taken]
            await write(session.send_tasks(tasks))

    async def _look(self, client: NodeClient) -> None:
        """Ask, a window at a time, which of the next shards' inputs the node holds already."""
        if self._shared:
            return
        assignment = self._work.assignment
        ahead = assignment.peek(LOOK_SHARDS if self._looked < 0 else 1)
        if not ahead or ahead[0] <= self._looked:
            return
        if len(ahead) == 1:
            ahead = assignment.peek(LOOK_SHARDS)
        self._looked = ahead[-1]
        local = await blame(self._work.data.find_local(client, ahead))
        self._held.update(local)
        assignment.hold(self._name, local)

    async def _stage(self, client: NodeClient, shards: list[int], lacking: bool) -> None:
        try:
            await blame(self._work.data.bring(client, shards, lacking))
        except BaseException:
            self._work.assignment.unready(self._name, shards)
            raise
        finally:
            self._wake.set()
        self._work.assignment.ready(self._name, shards)
