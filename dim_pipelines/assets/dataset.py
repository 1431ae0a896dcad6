"""The asset `dataset`: a batch's input as rows in shards."""

import dagster as dg

from dim_pipelines.assets.failures import failures, holder
from dim_pipelines.assets.partitions import batch_partitions
from dim_pipelines.content.ingest import Ingested, ingest
from dim_pipelines.content.models import ModelPackage, find_model
from dim_pipelines.content.store import ContentStore
from dim_pipelines.database.engine import Database
from dim_pipelines.dispatch.portal import Portal
from dim_pipelines.dispatch.tenure import tenure
from dim_pipelines.domain.batch import BatchSpec
from dim_pipelines.domain.cid import Cid
from dim_pipelines.orchestrator.batches import Batches
from dim_pipelines.orchestrator.dagster_instance import POOL


async def find_models(spec: BatchSpec, store: ContentStore, owner: str) -> list[ModelPackage]:
    """Find the batch's models in the store, in the pattern's order.

    Raises:
        InputError: the store's owner has no such model.
    """
    return [await find_model(use.model, store, owner) for use in spec.models]


@dg.asset(partitions_def=batch_partitions, pool=POOL, group_name="dim", kinds={"ipfs", "arrow"})
def dataset(
    context: dg.AssetExecutionContext,
    database: dg.ResourceParam[Database],
    content_store: dg.ResourceParam[ContentStore],
    portal: dg.ResourceParam[Portal],
) -> dg.MaterializeResult[Cid]:
    """The batch's input, read once, checked against the model, and cut into shards by content."""
    batches = Batches(database)
    with failures(context, batches, retry=True):
        row = batches.get(context.partition_key)
        batches.keep_run(row.id, context.run.run_id)

        async def read() -> Ingested:
            async with tenure(batches, row.id, holder(context)):
                models = await find_models(row.spec, content_store, row.owner)
                return await ingest(row.spec, models, content_store, owner=row.owner, batch=row.id)

        ingested = portal.call(read())
        batches.keep_dataset(row.id, ingested.dataset, ingested.errors)
    root = ingested.root
    context.log.info(f"{root.rows:,} rows in {root.shards:,} shards from {ingested.source}: {ingested.dataset}")
    metadata: dict[str, dg.MetadataValue] = {
        "dagster/row_count": dg.MetadataValue.int(root.rows),
        "dagster/column_schema": dg.MetadataValue.table_schema(
            dg.TableSchema([dg.TableColumn(column.name, column.type) for column in root.columns])
        ),
        "dim/dataset_cid": dg.MetadataValue.text(str(ingested.dataset)),
        "dim/source": dg.MetadataValue.text(ingested.source),
        "dim/rows": dg.MetadataValue.int(root.rows),
        "dim/dead_rows": dg.MetadataValue.int(root.dead_rows),
        "dim/shards": dg.MetadataValue.int(root.shards),
        "dim/shard_rows": dg.MetadataValue.int(root.shard_rows),
    }
    for note in ingested.notes:
        context.log.info(note)
    if ingested.notes:
        metadata["dim/notes"] = dg.MetadataValue.text("\n".join(ingested.notes))
    if ingested.errors is not None:
        metadata["dim/errors_cid"] = dg.MetadataValue.text(str(ingested.errors))
    return dg.MaterializeResult(
        value=ingested.dataset, data_version=dg.DataVersion(str(ingested.dataset)), metadata=metadata
    )
