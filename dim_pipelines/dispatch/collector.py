"""Fetches the outputs of one node as they come, and judges them."""

from __future__ import annotations

import asyncio
from typing import Final

from dim_pipelines.dispatch.batchwork import Batchwork, blame
from dim_pipelines.dispatch.node_client import NodeClient
from dim_pipelines.domain.events import TaskDone
from dim_pipelines.errors import NodeRefused

MAX_STRIKES: Final = 3
"""Wrong outputs after which a batch uses a node no more."""
OUTPUTS_PER_FETCH: Final = 64
"""Outputs that are fetched in one call, at most."""
BACKLOG_OUTPUTS: Final = 256
"""Outputs that wait to be fetched, at most, before a node gets no more tasks."""
GATHER_S: Final = 0.03
"""Seconds that an output waits for others to be fetched with."""
_FETCHES: Final = 2


class OutputCollector:
    """The outputs of one node.

    Attributes:
        good: outputs accepted.
        strikes: outputs that were wrong.
    """

    def __init__(self, name: str, shared: bool, work: Batchwork) -> None:
        """Collect from a node; arguments as of `NodeLink`."""
        self._name, self._shared, self._work = name, shared, work
        self._client: NodeClient | None = None
        self._fetching = 0
        self._answered: list[TaskDone] = []
        self._changed = asyncio.Event()
        self.good = 0
        self.strikes = 0

    @property
    def is_full(self) -> bool:
        """Whether so much waits that the node should get no more tasks."""
        return len(self._answered) >= BACKLOG_OUTPUTS

    @property
    def is_struck_out(self) -> bool:
        """Whether the node has given too many wrong outputs."""
        return self.strikes >= MAX_STRIKES

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits or is being fetched."""
        return not self._answered and not self._fetching

    def add(self, outcome: TaskDone) -> None:
        """Take an outcome whose output is wanted."""
        self._answered.append(outcome)
        self._changed.set()

    def begin(self, client: NodeClient) -> None:
        """Collect from a new stream: what waits is forgotten, its stream is gone, and its tasks went back."""
        self._client = client
        self._answered.clear()

    async def run(self, room: asyncio.Event) -> None:
        """Fetch until cancelled: what gathers during one fetch is the next one's batch.

        Args:
            room: is set after each fetch.

        Raises:
            NodeRefused: too many outputs were wrong.
            OwnFailure: the run worker's store has failed.
        """
        fetching: set[asyncio.Task[None]] = set()
        try:
            while True:
                await self._changed.wait()
                self._changed.clear()
                for task in [task for task in fetching if task.done()]:
                    fetching.remove(task)
                    task.result()
                    room.set()
                if self._answered and len(self._answered) < OUTPUTS_PER_FETCH:
                    await asyncio.sleep(GATHER_S)
                while self._answered and len(fetching) < _FETCHES:
                    batch, self._answered = self._answered[:OUTPUTS_PER_FETCH], self._answered[OUTPUTS_PER_FETCH:]
                    task = asyncio.create_task(self._accept(batch))
                    task.add_done_callback(lambda _: self._changed.set())
                    fetching.add(task)
        finally:
            for task in fetching:
                task.cancel()
            if fetching:
                await asyncio.wait(fetching)

    async def _accept(self, outcomes: list[TaskDone]) -> None:
        data, work = self._work.data, self._work
        assert self._client is not None
        self._fetching += 1
        try:
            verdicts = await blame(data.accept(self._client, self._shared, self._name, outcomes, work.shard_done))
        finally:
            self._fetching -= 1
        for outcome, failure in zip(outcomes, verdicts, strict=True):
            if failure is None:
                self.good += 1
                continue
            if failure.code == "content_mismatch":
                self.strikes += 1
            work.task_failed(self._name, outcome, failure)
        if self.is_struck_out:
            raise NodeRefused(f"{self.strikes} of its outputs were wrong")
