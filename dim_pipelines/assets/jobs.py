"""The jobs: `batch` runs one partition; `new_batch` submits a batch from the UI's launchpad or a command line."""

import asyncio
from pathlib import Path
from typing import Literal

import dagster as dg
from pydantic import Field

from dim_pipelines.assets.dataset import dataset
from dim_pipelines.assets.failures import to_failure
from dim_pipelines.assets.report import report
from dim_pipelines.assets.results import results
from dim_pipelines.content.models import find_model
from dim_pipelines.content.store import ContentStore
from dim_pipelines.database.engine import Database
from dim_pipelines.dispatch.portal import Portal
from dim_pipelines.domain.batch import BatchSpec
from dim_pipelines.domain.cid import looks_like_cid
from dim_pipelines.errors import DimError, InputError
from dim_pipelines.orchestrator.batches import submit_batch
from dim_pipelines.orchestrator.dagster_daemon import sensors_run
from dim_pipelines.orchestrator.dagster_instance import PARTITIONS

batch = dg.define_asset_job(
    "batch",
    selection=dg.AssetSelection.assets(dataset, results, report),
    description="Run one batch: dataset → results → report, with the checks. The partition is the batch's id.",
)


class NewBatch(dg.Config):
    """What to run. State shard_rows and batch_rows for a result that others can reproduce."""

    model: str = Field(description="The model: its CID, or its name as `dim model list` shows it.")
    input: str = Field(
        description="Where the rows are: a path on this machine (Parquet, CSV, a folder of images), "
        "ipfs://CID, or the CID of a dataset."
    )
    name: str = Field(default="batch", description="A short name for people.")
    columns: list[str] | None = Field(
        default=None, description="Input columns to keep besides the id; what the model reads when left out."
    )
    id_column: str | None = Field(
        default=None, description="The column that names the rows; the row number when left out."
    )
    shard_rows: int | None = Field(
        default=None, description="Rows per shard, the unit that a node computes at a time; chosen when left out."
    )
    batch_rows: int | None = Field(
        default=None, description="Rows per micro-batch, the unit of the model's call; chosen when left out."
    )
    on_row_error: Literal["fail", "dead_letter"] = Field(
        default="fail", description="What a bad row does: `fail` ends the batch, `dead_letter` sets the row aside."
    )
    output: str | None = Field(
        default=None, description="The file for the joined table; in DIM_HOME/outputs when left out."
    )
    output_format: Literal["parquet", "csv"] = Field(default="parquet", description="The joined table's format.")

    def to_spec(self) -> BatchSpec:
        """Give the batch's spec.

        Raises:
            InputError: a field is wrong.
        """
        plain = {
            "name": self.name,
            "models": [self.model],
            "input": {"uri": _absolute(self.input), "columns": self.columns, "id_column": self.id_column},
            "output": {"format": self.output_format},
            "shard_rows": self.shard_rows,
            "batch_rows": self.batch_rows,
            "on_row_error": self.on_row_error,
        }
        return BatchSpec.read(plain)


@dg.op
def submit(
    context: dg.OpExecutionContext,
    config: NewBatch,
    database: dg.ResourceParam[Database],
    content_store: dg.ResourceParam[ContentStore],
    portal: dg.ResourceParam[Portal],
) -> None:
    """Write the batch's row; the sensor `queued_batches` starts its run within seconds where a Dagster daemon runs."""
    try:
        spec = portal.call(settle(config.to_spec(), content_store))
        output = None if config.output is None else _absolute(config.output)
        row = submit_batch(database, spec, output=output)
    except DimError as error:
        raise to_failure(error) from error
    # Added here as well as by the sensor, so that the batch can be materialized by hand where there is no daemon.
    context.instance.add_dynamic_partitions(PARTITIONS, [row.id])
    command = f"dagster asset materialize --select '*' --partition {row.id} -m dim_pipelines.definitions"
    if sensors_run(context.instance):
        following = "The sensor queued_batches starts its run within ten seconds."
    else:
        following = f"Queued: no Dagster daemon is running here. Start one (dim up), or run it now: {command}"
    context.log.info(f"batch {row.id} is queued. {following}")
    context.add_output_metadata(
        {
            "dim/batch": dg.MetadataValue.text(row.id),
            "dim/state": dg.MetadataValue.text(row.state),
            "dim/next": dg.MetadataValue.text(following),
        }
    )


@dg.job(
    name="new_batch",
    description="Submit a batch. It is queued at once; its run appears under the job `batch`.",
    config=dg.RunConfig(
        ops={"submit": NewBatch(model="MODEL", input="/path/to/rows.csv", shard_rows=1024, batch_rows=32)}
    ),
)
def new_batch() -> None:
    """Submit a batch from the launchpad, whose first configuration shows what can be said."""
    submit()


async def settle(spec: BatchSpec, store: ContentStore, owner: str = "local") -> BatchSpec:
    """Name every model by its CID, so that the spec means the same for ever, and refuse an input that is not there.

    Raises:
        InputError: there is no such model, file or folder.
        ContentError: the store does not answer.
    """
    uri = spec.input.uri
    if "://" not in uri and not looks_like_cid(uri) and not await asyncio.to_thread(Path(uri).exists):
        raise InputError(f"no such file or folder: {uri}", hint="give an absolute path on this machine, or a CID")
    uses = []
    for use in spec.models:
        package = await find_model(use.model, store, owner)
        uses.append(use.model_copy(update={"model": str(package.cid)}))
    return spec.model_copy(update={"models": tuple(uses)})


def _absolute(text: str) -> str:
    """Make a local path absolute: the run has another working folder than whoever submits."""
    return text if not text or "://" in text or looks_like_cid(text) else str(Path(text).expanduser().absolute())
