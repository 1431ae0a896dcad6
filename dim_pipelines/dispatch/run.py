"""A batch from its dataset to its result: the one function that the command line and Dagster call.

The same inputs give the same Result CID, whatever nodes there were, in whatever order they answered, however often
a run died: the result is read off a table by shard position, never off what happened.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dim_pipelines.content.manifest import ShardWriter, read_dataset, shards, write_root
from dim_pipelines.content.models import ModelPackage
from dim_pipelines.content.shards import columns_of
from dim_pipelines.content.store import Block, ContentStore, Pin, batch_pin, result_pin
from dim_pipelines.dispatch.batch_run import BatchRun
from dim_pipelines.dispatch.candidates import ask_nodes, bound_to, choose_class, read_need
from dim_pipelines.dispatch.done_shards import DoneShards
from dim_pipelines.dispatch.head import Batch, BatchHead, Finished, Head, Progress, ProgressListener
from dim_pipelines.dispatch.node_pool import NodePool, PoolNode
from dim_pipelines.dispatch.past import read_past
from dim_pipelines.dispatch.shard_inputs import ShardInputs
from dim_pipelines.dispatch.tenure import tenure
from dim_pipelines.domain.cid import DAG_CBOR, Cid
from dim_pipelines.domain.dataset import Dataset, Result
from dim_pipelines.domain.format import Format
from dim_pipelines.domain.work import Provenance
from dim_pipelines.patterns.pattern import make_plan
from dim_pipelines.patterns.registry import find_pattern
from dim_pipelines.scheduling.feasibility import ANY
from dim_pipelines.scheduling.ranking import Weights


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
    weights: Weights | None = None,
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
        weights: of the ranking of nodes.

    Raises:
        NoFeasibleNode: no node can take the work, or none is left; carries each node's reason.
        StaleEpoch: a newer run has taken the batch.
        InputError: a row fails in the model.
        NodeError: a shard failed on several nodes.
        ContentError: the store failed.
    """
    async with tenure(head, batch.id, holder) as taken:
        return await _run(
            batch, dataset, models, taken, source, errors, store, head, pool, key, write_ahead, progress, weights
        )


async def _run(
    batch: Batch,
    dataset: Cid,
    models: Sequence[ModelPackage],
    taken: Head,
    source: str,
    errors: Cid | None,
    store: ContentStore,
    head: BatchHead,
    pool: NodePool,
    key: Ed25519PrivateKey,
    write_ahead: Path,
    progress: ProgressListener | None,
    weights: Weights | None,
) -> Finished:
    began = time.monotonic()
    pin, kept = batch_pin(batch.owner, batch.id), result_pin(batch.owner, batch.id)
    for model in models:  # a newer package of that name may take its place in the registry at any time
        for cid in (model.cid, *model.signatures):
            await store.pin(cid, pin)
    root = await read_dataset(store, dataset)
    inputs = ShardInputs()
    async for _, cid, rows in shards(store, root):
        inputs.append(cid, rows)
    need = await read_need(batch.spec, models, pool.owner_of(batch.owner), inputs, store)
    looked: list[PoolNode] | None = None

    def waits(why: str) -> None:
        if progress is not None:
            progress(Progress(0, len(inputs), 0, root.rows, 0, waits=why))

    if batch.spec.numerics == ANY:
        numerics = ANY
    elif taken.numerics is not None:
        numerics = taken.numerics
    else:
        looked = await ask_nodes(pool, need, waits)
        numerics = choose_class(looked, need)
    if numerics != taken.numerics:
        await asyncio.to_thread(head.keep_numerics, batch.id, taken.epoch, numerics)
    planned = make_plan(find_pattern(batch.spec.pattern), batch.spec, models, dataset, root, numerics)
    await _put(store, [planned.work, planned.plan], pin)
    past = await read_past(store, batch, taken, planned.work.cid(), inputs, write_ahead)
    resumed = len(past.journal.done)
    run_ = BatchRun(batch, taken.epoch, planned, models, inputs, past, store, head, pin, write_ahead, numerics)
    computing = time.monotonic()
    if resumed < len(inputs):
        if looked is None:
            looked = await ask_nodes(pool, bound_to(need, numerics), waits)
        await run_.dispatch(pool, bound_to(need, numerics), looked, key, progress, weights or Weights())
    else:
        await run_.settle()
    computed_s = max(time.monotonic() - computing, 1e-9)
    done = past.journal.done
    result = await _publish(store, root, planned.work.cid(), inputs, done, run_.schema, pin, kept)
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
            journal=None if past.lost else run_.journal_head,  # it names outputs that are gone: nothing can hold it
            errors=errors,
        ),
        kept,
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
        considered=run_.considered,
    )


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
    kept: Pin,
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
    return await write_root(store, result, kept)
