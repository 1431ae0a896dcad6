"""The composition root: assets, checks, jobs, sensors and resources in one place. Imported by nobody but Dagster."""

import dagster as dg

from dim_pipelines.assets.checks import result_is_retrievable, rows_in_equal_rows_out
from dim_pipelines.assets.dataset import dataset
from dim_pipelines.assets.jobs import batch, new_batch
from dim_pipelines.assets.nodes import node_pool, nodes
from dim_pipelines.assets.pool_checks import quorum, stale_records
from dim_pipelines.assets.report import report
from dim_pipelines.assets.results import results
from dim_pipelines.resources.content_store import ContentStoreResource
from dim_pipelines.resources.database import DatabaseResource
from dim_pipelines.resources.home import HomeResource
from dim_pipelines.resources.io_manager import CidIOManagerResource
from dim_pipelines.resources.network import NetworkResource
from dim_pipelines.resources.node_pool import NodePoolResource
from dim_pipelines.resources.portal import PortalResource
from dim_pipelines.sensors.ipns_nodes import ipns_nodes
from dim_pipelines.sensors.queued_batches import queued_batches

defs = dg.Definitions(
    assets=[dataset, results, report, nodes, node_pool],
    asset_checks=[rows_in_equal_rows_out, result_is_retrievable, quorum, stale_records],
    jobs=[batch, new_batch],
    sensors=[queued_batches, ipns_nodes],
    resources={
        "home": HomeResource(),
        "database": DatabaseResource(),
        "portal": PortalResource(),
        "content_store": ContentStoreResource(),
        "node_pool": NodePoolResource(),
        "network": NetworkResource(),
        "io_manager": CidIOManagerResource(),
    },
    # One process per run: channels, store and loop are shared by all steps of a batch.
    executor=dg.in_process_executor,
)
