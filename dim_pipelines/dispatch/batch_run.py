"""One run of one batch, once its plan stands: the dispatcher, the journal and the progress around the shards."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Final

import pyarrow as pa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dim_pipelines.content.models import ModelPackage
from dim_pipelines.content.shards import decode_shard
from dim_pipelines.content.store import ContentStore, Pin
from dim_pipelines.content.unixfs import read_bytes
from dim_pipelines.dispatch.candidates import NODES_HINT, reasons_against
from dim_pipelines.dispatch.dispatcher import Dispatcher, ShardGivenUp
from dim_pipelines.dispatch.head import Batch, BatchHead, Progress, ProgressListener
from dim_pipelines.dispatch.journal import JournalWriter
from dim_pipelines.dispatch.node_pool import NodePool, PoolNode
from dim_pipelines.dispatch.past import Past
from dim_pipelines.dispatch.pool_watch import END_S, PoolWatch
from dim_pipelines.dispatch.shard_inputs import ShardInputs
from dim_pipelines.dispatch.transfer import BlockTransfer
from dim_pipelines.dispatch.write_ahead import WriteAhead
from dim_pipelines.domain.cid import RAW, Cid
from dim_pipelines.domain.dataset import MAX_SHARD_BYTES
from dim_pipelines.domain.events import ShardDone
from dim_pipelines.domain.grant import Grant
from dim_pipelines.errors import DimError, InputError, NoFeasibleNode
from dim_pipelines.identity.authority import issue_grant
from dim_pipelines.identity.keys import public_bytes
from dim_pipelines.patterns.pattern import Planned
from dim_pipelines.scheduling.assignment import Assignment
from dim_pipelines.scheduling.feasibility import Need
from dim_pipelines.scheduling.ranking import Explained, Weights
from dim_pipelines.wire.status import from_failure

GRANT_S: Final = 24 * 3600.0
"""Seconds for which a node may be used with one grant; a stream that outlives it is opened again."""
PROGRESS_S: Final = 0.1
"""Seconds between two progress reports, at least."""
AHEAD_SHARDS: Final = 64
"""Small shards whose input is at a node before it has credit for them."""
AHEAD_LARGE_SHARDS: Final = 3
"""The same for shards of several blocks."""
_PARTING_S: Final = 0.5
_ROW_HINT: Final = (
    "mend the row or leave it out; rows that fail in the model end the batch under every on_row_error in this version, "
    "dead_letter covers the rows that are found bad before"
)


class BatchRun:
    """One run of one batch, once its plan stands."""

    def __init__(
        self,
        batch: Batch,
        epoch: int,
        planned: Planned,
        models: Sequence[ModelPackage],
        inputs: ShardInputs,
        past: Past,
        store: ContentStore,
        row: BatchHead,
        pin: Pin,
        write_ahead: Path,
        numerics: str,
    ) -> None:
        self._batch, self._epoch, self._planned, self._models = batch, epoch, planned, models
        self._inputs, self._store, self._numerics, self._pin = inputs, store, numerics, pin
        self._done = past.journal.done
        work = planned.work.cid()
        self._journal = JournalWriter(
            store,
            row,
            batch,
            epoch,
            work,
            journal=past.journal,
            write_ahead=WriteAhead(write_ahead, batch.id, epoch, work),
            pin=pin,
        )
        self._journal.adopt(past.outcomes, past.files)
        self._rows_done = sum(self._done.rows(shard) for shard in self._done)
        self._rows = self._rows_done + sum(inputs.rows(s) for s in range(len(inputs)) if s not in self._done)
        self._nodes = self._done.per_node()
        self._assignment: Assignment | None = None
        self._listener: ProgressListener | None = None
        self._told = 0.0
        self._waits = ""
        self.schema: pa.Schema | None = None
        self.considered: tuple[Explained, ...] = ()
        self.computed_rows = 0

    @property
    def retries(self) -> int:
        """Attempts that followed a failure."""
        return 0 if self._assignment is None else self._assignment.retries

    @property
    def journal_head(self) -> Cid | None:
        """The journal's newest segment."""
        return self._journal.head

    def progress(self) -> Progress:
        """Say how far the batch is."""
        return Progress(
            len(self._done),
            len(self._inputs),
            self._rows_done,
            self._rows,
            self.retries,
            dict(self._nodes),
            self._waits,
        )

    async def settle(self) -> None:
        """Commit what earlier runs left in write-ahead files."""
        self._journal.close()
        await self._journal.run()
        self.schema = await self._known_schema()

    async def dispatch(
        self,
        pool: NodePool,
        need: Need,
        looked: Sequence[PoolNode],
        key: Ed25519PrivateKey,
        listener: ProgressListener | None,
        weights: Weights,
    ) -> None:
        """Compute what is missing; nodes of the pool join and leave meanwhile."""
        if all(reasons_against(node, need) for node in looked):
            reasons = {node.name: ", ".join(reasons_against(node, need)) for node in looked}
            raise NoFeasibleNode(reasons=reasons, hint=NODES_HINT)
        self._listener = listener
        signatures = [cid for model in self._models for cid in model.signatures]
        transfer = BlockTransfer(
            self._store,
            self._inputs,
            self._journal,
            roots=[self._planned.plan.cid(), *(model.cid for model in self._models), *signatures],
            pin=self._pin,
            schema=await self._known_schema(),
        )
        waiting = (shard for shard in range(len(self._inputs)) if shard not in self._done)
        self._assignment = Assignment(len(self._inputs), waiting)
        small = self._inputs.cid(0).codec == RAW
        dispatcher = Dispatcher(
            self._assignment,
            transfer,
            grant=partial(_grant, self._batch, self._epoch, key, pool),
            plan=self._planned.plan.cid(),
            numerics=self._numerics,
            task=self._inputs.task,
            on_done=self._shard_done,
            ahead=AHEAD_SHARDS if small else AHEAD_LARGE_SHARDS,
            patience_s=pool.patience_s,
        )
        dispatcher.on_waits = self._tell_waits
        watch = PoolWatch(pool, dispatcher, need, batch=self._batch.id, swarm=self._store.swarm, weights=weights)
        await watch.begin(looked)
        if listener is not None:
            listener(self.progress())
        journaling = asyncio.create_task(self._journal.run())
        watching = asyncio.create_task(watch.run())
        for task in (journaling, watching):
            task.add_done_callback(lambda task: _stop_with(dispatcher, task))
        try:
            await dispatcher.run()
        except ShardGivenUp as error:
            raise await self._explained(error) from error
        finally:
            watching.cancel()
            self._journal.close()
            # what is finished stays usable: in a segment where there is time for one, else in the write-ahead file
            ended, _ = await asyncio.wait({journaling}, timeout=_PARTING_S if _is_ending() else None)
            if not ended:
                journaling.cancel()
                await asyncio.wait({journaling}, timeout=_PARTING_S)
            await self._journal.release()
            await watch.end(_PARTING_S / 2 if _is_ending() else END_S)
            self.considered = watch.explained
        journaling.result()
        self.schema = transfer.schema

    def _shard_done(self, done: ShardDone) -> None:
        self._done.add(done.shard, done.output, done.rows, done.node)
        self._rows_done += done.rows
        self.computed_rows += done.rows
        self._waits = ""
        self._nodes[done.node] = self._nodes.get(done.node, 0) + 1
        now = time.monotonic()
        if self._listener is not None and now - self._told >= PROGRESS_S:
            self._told = now
            self._listener(self.progress())

    def _tell_waits(self, waits: str) -> None:
        self._waits = waits
        if self._listener is not None:
            self._listener(self.progress())

    async def _known_schema(self) -> pa.Schema | None:
        """Read the outputs' schema off a shard that an earlier run computed."""
        first = next(iter(self._done), None)
        if first is None:
            return None
        data = await read_bytes(self._store, self._done.output(first), limit=MAX_SHARD_BYTES)
        return decode_shard(data).schema

    async def _explained(self, error: ShardGivenUp) -> DimError:
        """Give the error that a person can act on: name the row, or the shard and the node."""
        shard, failure = error.given_up.shard, error.given_up.failure
        if failure.code == InputError.code:
            where = f"shard {shard}"
            if error.row_error is not None:
                data = await read_bytes(self._store, self._inputs.cid(shard), limit=MAX_SHARD_BYTES)
                column = decode_shard(data).column(0)
                row = error.row_error.row
                if row < len(column):
                    return InputError(f"row {column[row].as_py()!r}: {error.row_error.reason}", hint=_ROW_HINT)
            return InputError(f"{where}: {failure.message}", hint=_ROW_HINT)
        return from_failure(
            failure.code,
            f"shard {shard} failed {error.given_up.spent} times, last on node {error.given_up.node}: {failure.message}",
        )


def _grant(batch: Batch, epoch: int, key: Ed25519PrivateKey, pool: NodePool) -> bytes:
    grant = Grant(
        network=pool.network,
        batch=batch.id,
        epoch=epoch,
        owner=pool.owner_of(batch.owner),
        holder=hashlib.sha256(public_bytes(key)).digest(),
        not_after_ms=time.time_ns() // 1_000_000 + int(GRANT_S * 1000),
    )
    return issue_grant(key, grant).encode()


def _stop_with(dispatcher: Dispatcher, task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        dispatcher.stop(error)


def _is_ending() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
