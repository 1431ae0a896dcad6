"""A batch from its dataset to its result: the one function that the command line and Dagster call.

The same inputs give the same Result CID, whatever nodes there were, in whatever order they answered, however often
a run died: the result is read off a table by shard position, never off what happened.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

import pyarrow as pa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dim_pipelines.content.manifest import ShardWriter, read_dataset, shards, write_root
from dim_pipelines.content.models import ModelPackage
from dim_pipelines.content.shards import columns_of, decode_shard
from dim_pipelines.content.store import Block, ContentStore, Pin
from dim_pipelines.content.unixfs import file_size, read_bytes
from dim_pipelines.dispatch.dispatcher import Dispatcher, ShardGivenUp
from dim_pipelines.dispatch.done_shards import DoneShards
from dim_pipelines.dispatch.head import Batch, BatchHead, Finished, Head, Progress, ProgressListener
from dim_pipelines.dispatch.journal import Journal, JournalWriter, read_journal
from dim_pipelines.dispatch.node_client import NodeClient
from dim_pipelines.dispatch.node_pool import NodePool
from dim_pipelines.dispatch.shard_inputs import ShardInputs
from dim_pipelines.dispatch.transfer import BlockTransfer
from dim_pipelines.dispatch.write_ahead import WriteAhead, read_write_ahead
from dim_pipelines.domain.cid import DAG_CBOR, RAW, Cid
from dim_pipelines.domain.dataset import MAX_SHARD_BYTES, Dataset, Result
from dim_pipelines.domain.events import ShardDone
from dim_pipelines.domain.format import Format
from dim_pipelines.domain.grant import Grant
from dim_pipelines.domain.node import NodeDescription
from dim_pipelines.domain.work import Provenance
from dim_pipelines.errors import DimError, InputError, NoFeasibleNode
from dim_pipelines.identity.authority import issue_grant
from dim_pipelines.identity.keys import public_bytes
from dim_pipelines.patterns.pattern import Planned, find_pattern, make_plan
from dim_pipelines.scheduling.assignment import Assignment
from dim_pipelines.scheduling.feasibility import ANY, Need, choose_numerics, infeasible
from dim_pipelines.wire.status import from_failure

GRANT_S: Final = 24 * 3600.0
"""Seconds for which a run may use nodes with one grant."""
PROGRESS_S: Final = 0.1
"""Seconds between two progress reports, at least."""
AHEAD_SHARDS: Final = 64
"""Small shards whose input is at a node before it has credit for them."""
AHEAD_LARGE_SHARDS: Final = 3
"""The same for shards of several blocks."""
_HAVE: Final = 4096
_PARTING_S: Final = 0.5

_log = logging.getLogger(__name__)

Described = dict[str, NodeDescription | DimError]


async def run(
    batch: Batch,
    dataset: Cid,
    models: Sequence[ModelPackage],
    *,
    source: str,
    errors: Cid | None,
    store: ContentStore,
    head: BatchHead,
    pool: NodePool,
    key: Ed25519PrivateKey,
    write_ahead: Path,
    progress: ProgressListener | None = None,
    holder: str,
) -> Finished:
    """Run a batch, or go on with it, and give what it made.

    Cancelling the task stops the nodes within a second and publishes nothing; finished shards are kept.

    Args:
        batch: id, owner and spec.
        dataset: CID of the ingested dataset.
        models: the models of the spec, in its order; their packages are in the store.
        source: the input's URI as the user wrote it, for the provenance.
        errors: CID of the table of rows found bad at ingest.
        store: this run worker's content store.
        head: the batch's row.
        pool: the nodes that may be used.
        key: the key that signs the grant; nodes must trust it.
        write_ahead: the folder of write-ahead files.
        progress: is told how far the batch is.
        holder: who runs the batch, for people.

    Raises:
        NoFeasibleNode: no node can take the work, or none is left; carries each node's reason.
        StaleEpoch: a newer run has taken the batch.
        InputError: a row fails in the model.
        NodeError: a shard failed on several nodes.
        ContentError: the store failed.
    """
    began = time.monotonic()
    taken = await asyncio.to_thread(head.take_epoch, batch.id, holder)
    pin = Pin(batch.owner, f"batch/{batch.id}")
    root = await read_dataset(store, dataset)
    inputs = ShardInputs()
    async for _, cid, rows in shards(store, root):
        inputs.append(cid, rows)
    need = await _need(batch, models, inputs, store)
    described: Described | None = None
    if batch.spec.numerics == ANY:
        numerics = ANY
    elif taken.numerics is not None:
        numerics = taken.numerics
    else:
        described = await pool.describe()
        numerics = _choose(described, need)
    if numerics != taken.numerics:
        await asyncio.to_thread(head.keep_numerics, batch.id, taken.epoch, numerics)
    planned = make_plan(find_pattern(batch.spec.pattern), batch.spec, models, dataset, root, numerics)
    await _put(store, [planned.work, planned.plan], pin)
    past = await _past(store, batch, taken, planned.work.cid(), inputs, write_ahead)
    resumed = len(past.journal.done)
    run_ = _Run(batch, taken.epoch, planned, models, inputs, past, store, head, pin, write_ahead, numerics)
    computing = time.monotonic()
    if resumed < len(inputs):
        if described is None:
            described = await pool.describe()
        await run_.dispatch(pool, _bound(need, numerics), described, key, progress)
    else:
        await run_.settle()
    computed_s = max(time.monotonic() - computing, 1e-9)
    done = past.journal.done
    result = await _publish(store, root, planned.work.cid(), inputs, done, run_.schema, pin)
    nodes = dict(sorted(done.per_node().items()))
    provenance = await write_root(
        store,
        Provenance(
            result=result,
            batch=batch.id,
            owner=batch.owner,
            submission=batch.spec.to_plain(),
            source=source,
            licences=tuple(model.description.licence for model in models),
            nodes=nodes,
            shards=len(inputs),
            resumed_shards=resumed,
            retries=run_.retries,
            seconds=round(time.monotonic() - began, 3),
            finished_ms=time.time_ns() // 1_000_000,
            journal=run_.journal_head,
            errors=errors,
        ),
        pin,
    )
    await store.sync()
    await asyncio.to_thread(head.finish, batch.id, taken.epoch, result, provenance)
    if progress is not None:
        progress(run_.progress())
    return Finished(
        batch=batch.id,
        result=result,
        dataset=dataset,
        provenance=provenance,
        rows=root.rows,
        dead_rows=root.dead_rows,
        shards=len(inputs),
        resumed_shards=resumed,
        retries=run_.retries,
        rows_per_s=run_.computed_rows / computed_s,
        seconds=time.monotonic() - began,
        nodes=nodes,
        licences=tuple(model.description.licence for model in models),
    )


@dataclass(slots=True)
class _Past:
    """What earlier runs left: the journal, and outcomes and files of the write-ahead."""

    journal: Journal
    outcomes: list[ShardDone]
    files: list[Path]


class _Run:
    """One run of one batch, once its plan stands."""

    def __init__(
        self,
        batch: Batch,
        epoch: int,
        planned: Planned,
        models: Sequence[ModelPackage],
        inputs: ShardInputs,
        past: _Past,
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
            numerics=numerics,
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
        self.schema: pa.Schema | None = None
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
            len(self._done), len(self._inputs), self._rows_done, self._rows, self.retries, dict(self._nodes)
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
        described: Described,
        key: Ed25519PrivateKey,
        listener: ProgressListener | None,
    ) -> None:
        """Compute what is missing."""
        nodes, reasons = _feasible(pool, described, need, self._store.swarm)
        if not nodes:
            raise NoFeasibleNode(reasons=reasons, hint=_HINT)
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
            nodes,
            self._assignment,
            transfer,
            grant=_grant(self._batch, self._epoch, key),
            plan=self._planned.plan.cid(),
            numerics=self._numerics,
            task=self._inputs.task,
            on_done=self._shard_done,
            infeasible=reasons,
            ahead=AHEAD_SHARDS if small else AHEAD_LARGE_SHARDS,
        )
        if listener is not None:
            listener(self.progress())
        journaling = asyncio.create_task(self._journal.run())
        journaling.add_done_callback(lambda task: _stop_with(dispatcher, task))
        try:
            await dispatcher.run()
        except ShardGivenUp as error:
            raise await self._explained(error) from error
        finally:
            self._journal.close()
            # what is finished stays usable: in a segment where there is time for one, else in the write-ahead file
            ended, _ = await asyncio.wait({journaling}, timeout=_PARTING_S if _is_ending() else None)
            if not ended:
                journaling.cancel()
                await asyncio.wait({journaling}, timeout=_PARTING_S)
            await self._journal.release()
        journaling.result()
        self.schema = transfer.schema

    def _shard_done(self, done: ShardDone) -> None:
        self._done.add(done.shard, done.output, done.rows, done.node)
        self._rows_done += done.rows
        self.computed_rows += done.rows
        self._nodes[done.node] = self._nodes.get(done.node, 0) + 1
        now = time.monotonic()
        if self._listener is not None and now - self._told >= PROGRESS_S:
            self._told = now
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


_HINT: Final = "see that the nodes run and that they offer what the model needs: dim node start"
_ROW_HINT: Final = (
    "mend the row or leave it out; rows that fail in the model end the batch under every on_row_error in this version, "
    "dead_letter covers the rows that are found bad before"
)


async def _need(batch: Batch, models: Sequence[ModelPackage], inputs: ShardInputs, store: ContentStore) -> Need:
    requirements = batch.spec.requirements
    return Need(
        models=tuple((model.description.engine, model.description.dtype) for model in models),
        device=requirements.device,
        min_vram=requirements.min_vram,
        labels=requirements.labels,
        # all shards but the last have the same number of rows: the first stands for them
        max_shard_bytes=await file_size(store, inputs.cid(0)) if len(inputs) else 0,
    )


def _bound(need: Need, numerics: str) -> Need:
    return Need(need.models, numerics, need.device, need.min_vram, need.labels, need.max_shard_bytes)


def _choose(described: Described, need: Need) -> str:
    nodes = {name: node for name, node in described.items() if isinstance(node, NodeDescription)}
    numerics = choose_numerics(nodes, need)
    if numerics is None:
        raise NoFeasibleNode(None if described else "there are no nodes", reasons=_reasons(described, need), hint=_HINT)
    return numerics


def _reasons(described: Described, need: Need) -> dict[str, str]:
    reasons: dict[str, str] = {}
    for name, node in described.items():
        why = (node.message,) if isinstance(node, DimError) else infeasible(node, need)
        if why:
            reasons[name] = ", ".join(why)
    return reasons


def _feasible(
    pool: NodePool, described: Described, need: Need, swarm: str
) -> tuple[dict[str, tuple[NodeClient, bool]], dict[str, str]]:
    reasons = _reasons(described, need)
    nodes = {
        name: (pool.client(name), bool(swarm) and node.swarm == swarm)
        for name, node in described.items()
        if isinstance(node, NodeDescription) and name not in reasons
    }
    return nodes, reasons


def _grant(batch: Batch, epoch: int, key: Ed25519PrivateKey) -> bytes:
    grant = Grant(
        network="local",
        batch=batch.id,
        epoch=epoch,
        owner=batch.owner,
        holder=hashlib.sha256(public_bytes(key)).digest(),
        not_after_ms=time.time_ns() // 1_000_000 + int(GRANT_S * 1000),
    )
    return issue_grant(key, grant).encode()


async def _past(store: ContentStore, batch: Batch, taken: Head, work: Cid, inputs: ShardInputs, folder: Path) -> _Past:
    """Read what earlier runs of this work left, and keep what is still there."""
    journal = await read_journal(store, taken.head, batch=batch.id, owner=batch.owner)
    if journal.work not in (None, work):
        _log.warning("batch %s: the journal is of another work (the input or a model has changed)", batch.id)
        journal = Journal()
    outcomes, files = await asyncio.to_thread(read_write_ahead, folder, batch.id, work)
    fresh = [
        each
        for each in outcomes
        if each.shard < len(inputs)
        and each.rows == inputs.rows(each.shard)
        and journal.done.add(each.shard, each.output, each.rows, each.node)
    ]
    lost = await _drop_missing(store, journal.done, len(inputs))
    return _Past(journal, [each for each in fresh if each.shard not in lost], files)


async def _drop_missing(store: ContentStore, done: DoneShards, count: int) -> set[int]:
    """Forget shards whose output the store has not got any more; they are computed again."""
    dropped: set[int] = set()
    positions = iter(done)
    while window := list(islice(positions, _HAVE)):
        held = await store.have([done.output(shard) for shard in window])
        dropped.update(shard for shard in window if shard >= count or done.output(shard) not in held)
    for shard in dropped:
        done.drop(shard)
    return dropped


async def _put(store: ContentStore, values: Sequence[Format], pin: Pin) -> None:
    blocks = []
    for value in values:
        data = value.encode()
        blocks.append(Block(Cid.of(DAG_CBOR, data), data))
    await store.put(blocks, pin=pin)


async def _publish(
    store: ContentStore,
    root: Dataset,
    work: Cid,
    inputs: ShardInputs,
    done: DoneShards,
    schema: pa.Schema | None,
    pin: Pin,
) -> Cid:
    """Write the result's pages and root, and hold everything below it."""
    writer = ShardWriter(store, pin=pin)
    for shard in range(len(inputs)):
        await writer.add(done.output(shard), inputs.rows(shard))
    result = Result(
        work=work,
        columns=() if schema is None else columns_of(schema),
        rows=writer.rows,
        shards=writer.shards,
        pages=await writer.close(),
        dead=root.dead,
        dead_rows=root.dead_rows,
    )
    return await write_root(store, result, pin)


def _stop_with(dispatcher: Dispatcher, task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        dispatcher.stop(error)


def _is_ending() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
