"""The asset `report`: a batch's outputs joined to its input rows, as a file for people and programs."""

from pathlib import Path

import dagster as dg
import pyarrow as pa

from dim_pipelines.assets.failures import failures
from dim_pipelines.assets.partitions import batch_partitions
from dim_pipelines.assets.sampling import read_sample, to_markdown
from dim_pipelines.content.join import join
from dim_pipelines.content.manifest import read_dataset, read_result
from dim_pipelines.content.store import ContentStore
from dim_pipelines.content.unixfs import file_size, read_bytes
from dim_pipelines.database.engine import Database
from dim_pipelines.dispatch.portal import Portal
from dim_pipelines.domain.cid import Cid
from dim_pipelines.orchestrator.batches import Batches, BatchRow
from dim_pipelines.settings import Home

MAX_ERROR_TABLE_BYTES = 64 << 20
"""A larger table of bad rows is named by its CID only."""
SHOWN_ERRORS = 10
"""How many bad rows the metadata shows."""


@dg.asset(partitions_def=batch_partitions, group_name="dim", kinds={"parquet"})
def report(
    context: dg.AssetExecutionContext,
    dataset: Cid,
    results: Cid,
    database: dg.ResourceParam[Database],
    content_store: dg.ResourceParam[ContentStore],
    portal: dg.ResourceParam[Portal],
    home: dg.ResourceParam[Home],
) -> dg.MaterializeResult[None]:
    """The joined table of inputs and outputs in a file, and the rows that could not be used."""
    batches = Batches(database)
    with failures(context, batches, retry=True):
        row = batches.get(context.partition_key)
        path = output_path(row, home)

        async def write() -> tuple[int, int, str, list[dict[str, object]] | None]:
            path.parent.mkdir(parents=True, exist_ok=True)
            rows = await join(results, dataset, row.spec, content_store, path, errors=row.errors)
            inputs, outputs = await read_dataset(content_store, dataset), await read_result(content_store, results)
            sample = await read_sample(content_store, inputs, outputs, tiles=0)
            errors = None if row.errors is None else await read_errors(content_store, row.errors)
            return rows, outputs.dead_rows, to_markdown(sample.rows), errors

        rows, dead_rows, preview, errors = portal.call(write())
        batches.keep_output(row.id, str(path))
    context.log.info(f"{rows:,} joined rows in {path}")
    metadata: dict[str, dg.MetadataValue] = {
        "dim/path": dg.MetadataValue.path(path),
        "dagster/row_count": dg.MetadataValue.int(rows),
        "dim/size_bytes": dg.MetadataValue.int(path.stat().st_size),
        "dim/result_cid": dg.MetadataValue.text(str(results)),
        "dim/preview": dg.MetadataValue.md(preview),
        "dim/dead_letters": dg.MetadataValue.int(dead_rows),
    }
    if row.errors is not None:
        metadata["dim/errors_cid"] = dg.MetadataValue.text(str(row.errors))
    if errors is not None:
        metadata["dim/errors"] = dg.MetadataValue.md(to_markdown(errors))
    return dg.MaterializeResult(metadata=metadata)


def output_path(row: BatchRow, home: Home) -> Path:
    """Say where the joined table goes: where the user wanted it, else into the home's outputs."""
    return Path(row.output).absolute() if row.output else home.outputs / f"{row.id}.{row.spec.output.format}"


async def read_errors(store: ContentStore, cid: Cid) -> list[dict[str, object]] | None:
    """Read the first `SHOWN_ERRORS` rows found bad at ingest: row, reason, file; None where the table is too large.

    Raises:
        ContentError: it cannot be read.
    """
    if await file_size(store, cid) > MAX_ERROR_TABLE_BYTES:
        return None
    data = await read_bytes(store, cid, limit=MAX_ERROR_TABLE_BYTES)
    rows: list[dict[str, object]] = []
    with pa.ipc.open_stream(pa.py_buffer(data)) as reader:
        for batch in reader:
            rows += batch.slice(0, SHOWN_ERRORS - len(rows)).to_pylist()
            if len(rows) == SHOWN_ERRORS:
                break
    return rows
