"""A batch run in this process, without Dagster: ingest, dispatch, join, with a bar for each.

The steps and the row are the same as those of Dagster's assets; only who calls them differs.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dim_pipelines.cli.local import OWNER, LocalNodes

if TYPE_CHECKING:
    from dim_pipelines.cli.console import Screen
    from dim_pipelines.content.models import ModelPackage
    from dim_pipelines.content.store import ContentStore
    from dim_pipelines.dispatch.head import Finished, Progress
    from dim_pipelines.orchestrator.batches import Batches, BatchRow
    from dim_pipelines.settings import Home


@dataclass(frozen=True, slots=True)
class Done:
    """A batch that ran to its end, and the file of its joined table."""

    finished: Finished
    output: Path

    def record(self) -> dict[str, Any]:
        """Give what `--json` prints."""
        finished = self.finished
        return {
            "batch": finished.batch,
            "result_cid": str(finished.result),
            "dataset_cid": str(finished.dataset),
            "provenance_cid": str(finished.provenance),
            "rows": finished.rows,
            "dead_rows": finished.dead_rows,
            "shards": finished.shards,
            "resumed_shards": finished.resumed_shards,
            "rows_per_s": round(finished.rows_per_s, 1),
            "seconds": round(finished.seconds, 3),
            "nodes": dict(sorted(finished.nodes.items())),
            "output": str(self.output),
        }


def holder() -> str:
    """Name this process as the holder of a batch."""
    return f"dim on {socket.gethostname()}, process {os.getpid()}"


def check_output(path: Path) -> Path:
    """Give the absolute path of an output file, once it is known that it can be written.

    Raises:
        ConfigurationError: it cannot.
    """
    from dim_pipelines.content.join import check_writable

    path = path.expanduser().absolute()
    check_writable(path)
    return path


async def run_here(
    row: BatchRow,
    *,
    home: Home,
    batches: Batches,
    store: ContentStore,
    ipfs: str,
    nodes: Sequence[str],
    output: Path,
    screen: Screen,
    public: bool = False,
) -> Done:
    """Run a batch to its end.

    Args:
        row: the batch.
        home: whose key submits it.
        batches: the table the row is in.
        store: where content lies.
        ipfs: what the store was opened with; the node started here uses the same.
        nodes: addresses of nodes, or `network` for those of the home's network; empty: one is started for the time
            of the run.
        output: where the joined table is written.
        screen: where progress is shown.
        public: the node started here may add to a Kubo that is not shown to be private.

    Raises:
        DimError: anything that ends a batch; finished shards are kept and `dim resume` continues.
    """
    from dim_pipelines.content.models import find_model

    models = [await find_model(use.model, store, OWNER) for use in row.spec.models]
    # The node's process starts while the input is read; whichever ends first, both end with this block.
    engines = [model.description.engine for model in models]
    local = LocalNodes(home, 1, ipfs, prefix="here", engines=engines, public=public)
    starting = asyncio.create_task(local.start()) if not nodes else None
    try:
        row = await _read(row, models, batches, store, screen)
        if starting is not None:
            with screen.progress("starting the node"):
                nodes = [node.address for node in await starting]
        finished = await _compute(row, models, home, batches, store, ipfs, nodes, screen)
    finally:
        if starting is not None:
            starting.cancel()
        await local.stop()
    await _join(row, finished, store, output, screen)
    await asyncio.to_thread(batches.keep_output, row.id, str(output))
    return Done(finished, output)


async def _read(
    row: BatchRow, models: Sequence[ModelPackage], batches: Batches, store: ContentStore, screen: Screen
) -> BatchRow:
    """Make the dataset, unless an earlier run of the batch has made it and it is still there."""
    from dim_pipelines.content.ingest import ingest
    from dim_pipelines.dispatch.tenure import tenure

    if row.dataset is not None and await store.have([row.dataset]):
        return row
    with screen.progress("reading the input") as bar:

        def show(rows: int) -> None:
            bar.update(rows, None, "rows")

        async with tenure(batches, row.id, holder()):
            ingested = await ingest(row.spec, models, store, owner=OWNER, batch=row.id, progress=show)
    for note in ingested.notes:
        screen.warn(note)
    await asyncio.to_thread(batches.keep_dataset, row.id, ingested.dataset, ingested.errors)
    return await asyncio.to_thread(batches.get, row.id, owner=OWNER)


async def _compute(
    row: BatchRow,
    models: Sequence[ModelPackage],
    home: Home,
    batches: Batches,
    store: ContentStore,
    ipfs: str,
    nodes: Sequence[str],
    screen: Screen,
) -> Finished:
    from dim_pipelines.dispatch.open_pool import open_pool, read_weights
    from dim_pipelines.dispatch.run import run
    from dim_pipelines.identity.keys import load_or_create_key
    from dim_pipelines.orchestrator.survey import Survey

    assert row.dataset is not None
    weights = read_weights(home)
    survey = await asyncio.to_thread(Survey.of, home, ipfs)
    pool = await open_pool(home, nodes, survey.look_where_nobody_does if survey else None)
    try:
        with screen.progress("computing") as bar:

            def show(progress: Progress) -> None:
                bar.wait(progress.waits)
                bar.update(progress.rows_done, progress.rows, f"rows, {progress.shards_done}/{progress.shards} shards")

            return await run(
                row.batch,
                row.dataset,
                models,
                source=row.spec.input.uri,
                errors=row.errors,
                store=store,
                head=batches,
                pool=pool,
                key=load_or_create_key(home.user_key),
                write_ahead=home.write_ahead,
                progress=show,
                holder=holder(),
                weights=weights,
            )
    finally:
        await pool.close()
        if survey is not None:
            await survey.close()


async def _join(row: BatchRow, finished: Finished, store: ContentStore, output: Path, screen: Screen) -> None:
    from dim_pipelines.content.join import join

    with screen.progress("writing the table") as bar:

        def show(rows: int) -> None:
            bar.update(rows, finished.rows, "rows")

        await join(finished.result, finished.dataset, row.spec, store, output, show, errors=row.errors)
