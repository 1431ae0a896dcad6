"""The checks of `results`: nothing was lost, and everything that the result names can be read.

They read the result by its CID, not what the run remembers, so running one again next month answers for next
month. Within a run they look at the run's partition, alone at the newest result. (Dagster 1.13 can partition
checks themselves, but calls that a preview which may break in a patch release.)
"""

import time
from dataclasses import dataclass
from typing import Final

import dagster as dg

from dim_pipelines.assets.results import results
from dim_pipelines.assets.sampling import read_entries, read_shards, spread
from dim_pipelines.content.manifest import dead_ids, read_dataset, read_result, shards
from dim_pipelines.content.store import ContentStore
from dim_pipelines.dispatch.portal import Portal
from dim_pipelines.domain.cid import Cid
from dim_pipelines.domain.dataset import Dataset, Result
from dim_pipelines.domain.work import Work
from dim_pipelines.errors import ContentMismatch, DimError
from dim_pipelines.orchestrator.dagster_daemon import find_cid

MAX_CHECKED_SHARDS: Final = 2_000
"""How many output shards are read back and hashed; of a larger result that many, evenly spaced."""


@dataclass(frozen=True, slots=True)
class Verified:
    """What was read back of a result: how many of its shards, and the rows in them."""

    shards: int
    rows: int


@dg.asset_check(asset=results, blocking=True)
def rows_in_equal_rows_out(
    context: dg.AssetCheckExecutionContext,
    content_store: dg.ResourceParam[ContentStore],
    portal: dg.ResourceParam[Portal],
) -> dg.AssetCheckResult:
    """Every input row is in the outputs or among the dead rows, shard by shard."""
    try:
        dataset, result = portal.call(count_rows(content_store, checked_result(context)))
    except DimError as error:
        return _failed(error)
    return dg.AssetCheckResult(
        passed=True,
        metadata={
            "rows in": dataset.rows + dataset.dead_rows,
            "rows out": result.rows,
            "dead rows": result.dead_rows,
            "shards": result.shards,
        },
    )


@dg.asset_check(asset=results, blocking=True)
def result_is_retrievable(
    context: dg.AssetCheckExecutionContext,
    content_store: dg.ResourceParam[ContentStore],
    portal: dg.ResourceParam[Portal],
) -> dg.AssetCheckResult:
    """The result's manifest and outputs can be read from the store, and their bytes have the hashes of their CIDs."""
    started = time.monotonic()
    try:
        cid = checked_result(context)
        result, verified = portal.call(verify_outputs(content_store, cid))
    except DimError as error:
        return _failed(error)
    return dg.AssetCheckResult(
        passed=True,
        metadata={
            "result CID": str(cid),
            "shards hashed": verified.shards,
            "of shards": result.shards,
            "rows read": verified.rows,
            "seconds": round(time.monotonic() - started, 3),
        },
    )


def checked_result(context: dg.AssetCheckExecutionContext) -> Cid:
    """Give the CID of the result to check: that of the run's batch, or the newest one when there is none.

    Raises:
        ContentNotFound: there is no such result.
    """
    return find_cid(context.instance, results.key, context.partition_key if context.has_partition_key else None)


async def count_rows(store: ContentStore, cid: Cid) -> tuple[Dataset, Result]:
    """Compare a result with the dataset that its work names.

    Raises:
        ContentMismatch: a row is missing or there twice, as far as counts can tell.
        ContentError: a manifest cannot be read.
    """
    result = await read_result(store, cid)
    work = Work.decode(await store.get(result.work))
    dataset = await read_dataset(store, work.dataset)
    given, made = dataset.rows + dataset.dead_rows, result.rows + result.dead_rows
    if (given, dataset.shards) != (made, result.shards):
        raise ContentMismatch(
            f"{given:,} rows in {dataset.shards:,} shards went in, "
            f"{result.rows:,} rows and {result.dead_rows:,} dead rows in {result.shards:,} shards came out"
        )
    dead = len({row async for row in dead_ids(store, result)})
    if dead != result.dead_rows:
        raise ContentMismatch(f"{result.dead_rows:,} rows are dead, but only {dead:,} different ones are named")
    inputs = shards(store, dataset)
    lost = 0
    async for index, _, rows in shards(store, result):
        _, _, rows_in = await anext(inputs)
        lost += rows_in - rows
        if rows > rows_in:
            raise ContentMismatch(f"shard {index} has {rows_in:,} rows in and {rows:,} rows out")
    if lost != result.dead_rows - dataset.dead_rows:
        raise ContentMismatch(f"{lost:,} rows of shards have no output and are not among the dead rows")
    return dataset, result


async def verify_outputs(store: ContentStore, cid: Cid) -> tuple[Result, Verified]:
    """Read a result's outputs back; the store verifies each block against its CID.

    Raises:
        ContentMismatch: a shard's rows are not what the manifest says.
        ContentError: a block cannot be read, or is not what its CID names.
    """
    result = await read_result(store, cid)
    entries = await read_entries(store, result.pages, spread(result.shards, MAX_CHECKED_SHARDS))
    rows = 0
    async for entry, batch in read_shards(store, entries):
        if batch.num_rows != entry.rows:
            raise ContentMismatch(f"shard {entry.index} holds {batch.num_rows} rows, the manifest says {entry.rows}")
        rows += batch.num_rows
    return result, Verified(len(entries), rows)


def _failed(error: DimError) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(passed=False, description=error.message, metadata={"dim/error_code": error.code})
