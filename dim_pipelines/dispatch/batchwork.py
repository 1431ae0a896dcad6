"""What the parts of a link to a node need of their dispatcher, and whose fault an error is."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, TypeVar

from dim_pipelines.dispatch.transfer import DataPath
from dim_pipelines.domain.cid import Cid
from dim_pipelines.domain.events import ShardDone, Task, TaskDone, TaskFailed
from dim_pipelines.errors import DimError, NodeError
from dim_pipelines.scheduling.assignment import Assignment
from dim_pipelines.scheduling.retry import Failure

T = TypeVar("T")


class Batchwork(Protocol):
    """What a link needs of the dispatcher."""

    assignment: Assignment
    data: DataPath
    grant: Callable[[], bytes]
    """Makes an encoded SignedGrant: each stream gets one that has just begun."""
    plan: Cid
    numerics: str
    ahead: int
    """Shards whose input is at a node before it has credit for them."""

    def silent(self) -> Sequence[str]:
        """Name the nodes that have said nothing for `SUSPECT_S`."""
        ...

    def task(self, shard: int, attempt: int) -> Task:
        """Make a task."""
        ...

    def shard_done(self, done: ShardDone) -> None:
        """Note an accepted output."""
        ...

    def task_failed(self, node: str, outcome: TaskDone | TaskFailed, failure: Failure) -> None:
        """Note a failed task."""
        ...

    def node_left(self, node: str, failure: Failure) -> None:
        """Note that a node is gone; what it had goes back."""
        ...

    def node_lost(self, node: str, why: str) -> None:
        """Note that an open session with a node was lost, by no wish of this side."""
        ...

    def stop(self, error: BaseException) -> None:
        """End the batch with an error."""
        ...


class OwnFailure(DimError):
    """The run worker itself has failed; the cause says how."""


async def blame(action: Awaitable[T]) -> T:
    """Await what touches both a node and the run worker's own store.

    Raises:
        NodeError: the node has failed.
        OwnFailure: the run worker's store or row has failed: no other node helps, the batch ends.
    """
    try:
        return await action
    except NodeError:
        raise
    except DimError as error:
        raise OwnFailure(error.message) from error
