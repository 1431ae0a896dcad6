"""The asset `results`: a batch's outputs, computed by the nodes.

Thousands of shards run inside this one op. Dagster's thread waits at the portal; when it is interrupted, the
portal cancels the dispatch, nodes stop, nothing is published and finished shards stay reusable.
"""

from collections.abc import Sequence

import dagster as dg

from dim_pipelines.assets.dataset import find_models
from dim_pipelines.assets.failures import failures, holder
from dim_pipelines.assets.partitions import batch_partitions
from dim_pipelines.assets.pictures import Bars, Picture
from dim_pipelines.assets.pictures import to_markdown as draw_markdown
from dim_pipelines.assets.progress import ProgressLog
from dim_pipelines.assets.sampling import Sample, read_sample, to_markdown
from dim_pipelines.content.manifest import read_dataset, read_result
from dim_pipelines.content.store import ContentStore
from dim_pipelines.database.engine import Database
from dim_pipelines.dispatch.head import Finished
from dim_pipelines.dispatch.node_pool import NodePool
from dim_pipelines.dispatch.open_pool import read_weights
from dim_pipelines.dispatch.portal import Portal
from dim_pipelines.dispatch.run import run
from dim_pipelines.domain.cid import Cid
from dim_pipelines.identity.keys import load_or_create_key
from dim_pipelines.orchestrator.batches import Batches
from dim_pipelines.orchestrator.dagster_instance import POOL
from dim_pipelines.scheduling.ranking import Explained
from dim_pipelines.settings import Home


@dg.asset(partitions_def=batch_partitions, pool=POOL, group_name="dim", kinds={"ipfs", "grpc"})
def results(
    context: dg.AssetExecutionContext,
    dataset: Cid,
    database: dg.ResourceParam[Database],
    content_store: dg.ResourceParam[ContentStore],
    node_pool: dg.ResourceParam[NodePool],
    portal: dg.ResourceParam[Portal],
    home: dg.ResourceParam[Home],
) -> dg.MaterializeResult[Cid]:
    """The batch's outputs by content: the same work gives the same CID, on whichever nodes it ran."""
    batches = Batches(database)
    with failures(context, batches), ProgressLog(context.log.info) as progress:
        row = batches.get(context.partition_key)
        batches.keep_run(row.id, context.run.run_id)

        async def compute() -> tuple[Finished, Sample]:
            finished = await run(
                row.batch,
                dataset,
                await find_models(row.spec, content_store, row.owner),
                source=row.spec.input.uri,
                errors=row.errors,
                store=content_store,
                head=batches,
                pool=node_pool,
                key=load_or_create_key(home.user_key),
                write_ahead=home.write_ahead,
                progress=progress.update,
                holder=holder(context),
                weights=read_weights(home),
            )
            inputs = await read_dataset(content_store, finished.dataset)
            outputs = await read_result(content_store, finished.result)
            return finished, await read_sample(content_store, inputs, outputs)

        finished, sample = portal.call(compute())
    context.log.info(f"{finished.rows:,} rows at {finished.rows_per_s:,.0f} rows/s: {finished.result}")
    return dg.MaterializeResult(
        value=finished.result,
        data_version=dg.DataVersion(str(finished.result)),
        metadata=describe(row.spec.name, finished, sample),
    )


def describe(name: str, finished: Finished, sample: Sample) -> dict[str, dg.MetadataValue]:
    """Give the metadata of a result: what it is, what it cost, who computed it, and what a person would look at."""
    computed = max(1, sum(finished.nodes.values()))
    shares = [
        dg.TableRecord({"node": node, "shards": shards, "share": f"{100 * shards / computed:.1f} %"})
        for node, shards in sorted(finished.nodes.items())
    ]
    return {
        "dim/picture": dg.MetadataValue.md(draw_markdown(picture_of(name, finished, sample))),
        "dim/preview": dg.MetadataValue.md(to_markdown(sample.rows)),
        "dim/nodes": dg.MetadataValue.table(shares, dg.TableSchema(_SHARES) if not shares else None),
        "dim/considered": considered_table(finished.considered),
        "dim/result_cid": dg.MetadataValue.text(str(finished.result)),
        "dim/dataset_cid": dg.MetadataValue.text(str(finished.dataset)),
        "dim/provenance_cid": dg.MetadataValue.text(str(finished.provenance)),
        "dagster/row_count": dg.MetadataValue.int(finished.rows),
        "dim/rows": dg.MetadataValue.int(finished.rows),
        "dim/dead_rows": dg.MetadataValue.int(finished.dead_rows),
        "dim/shards": dg.MetadataValue.int(finished.shards),
        "dim/resumed_shards": dg.MetadataValue.int(finished.resumed_shards),
        "dim/retries": dg.MetadataValue.int(finished.retries),
        "dim/rows_per_s": dg.MetadataValue.float(round(finished.rows_per_s, 2)),
        "dim/seconds": dg.MetadataValue.float(round(finished.seconds, 3)),
        "dim/licence": dg.MetadataValue.text(", ".join(finished.licences)),
    }


def considered_table(considered: Sequence[Explained]) -> dg.TableMetadataValue:
    """Give each node of the pool with every reason why the batch was not given to it, as `dim nodes explain` does."""
    shown = sorted(considered, key=lambda each: (not each.chosen, not each.feasible))[:_MAX_CONSIDERED]
    records = [
        dg.TableRecord(
            {
                "node": each.name,
                "state": each.state,
                "used": "yes" if each.chosen else "no",
                "reasons": "; ".join(each.reasons) or ("" if each.chosen else "it was not needed"),
                "score": "" if each.score is None else f"{each.score:.3f}",
                "score of": ", ".join(f"{part} {value:.2f}" for part, value in each.parts.items()),
            }
        )
        for each in shown
    ]
    return dg.MetadataValue.table(records, _CONSIDERED)


def picture_of(name: str, finished: Finished, sample: Sample) -> Picture:
    """Say what the picture of a result shows: inputs with predictions, the labels, and the nodes' shares."""
    bars = []
    if sample.counts:
        of = "all" if sample.counted_rows == finished.rows else f"{sample.counted_rows:,} of"
        bars.append(Bars(f"{sample.label}: {of} {finished.rows:,} rows", sample.counts))
    shares = sorted(finished.nodes.items(), key=lambda item: (-item[1], item[0]))
    bars.append(Bars("shards per node", {node: float(shards) for node, shards in shares[:_MAX_NODES]}))
    return Picture(f"{name}: {finished.rows:,} rows, {finished.rows_per_s:,.0f} rows/s", sample.tiles, bars)


_MAX_NODES = 20
_MAX_CONSIDERED = 100
_CONSIDERED = dg.TableSchema(
    [dg.TableColumn(name) for name in ("node", "state", "used", "reasons", "score", "score of")]
)
_SHARES = [dg.TableColumn("node", "string"), dg.TableColumn("shards", "int"), dg.TableColumn("share", "string")]
