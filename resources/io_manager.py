"""The IO manager by CID: what passes between assets is a name of content, never the content.

`handle_output` puts the CID into the materialization; `load_input` reads it back from the newest
materialization of that asset *and partition*, so one asset of a partition can be run alone, on another
day or machine. What is not promised: a CID does not say that the content is still held; the checks do.
"""

from typing import Final

import dagster as dg

from dim_pipelines.domain.cid import Cid
from dim_pipelines.errors import ContentNotFound

CID_KEY: Final = "dim/cid"
"""The metadata key under which a materialization keeps its CID."""


class CidIOManager(dg.IOManager):
    """Keeps CIDs in Dagster's event log."""

    def handle_output(self, context: dg.OutputContext, obj: Cid) -> None:
        """Put the CID into the output's metadata."""
        if not isinstance(obj, Cid):
            raise TypeError(f"{context.asset_key.to_user_string()} returned a {type(obj).__name__}, not a CID")
        context.add_output_metadata({CID_KEY: dg.MetadataValue.text(str(obj))})

    def load_input(self, context: dg.InputContext) -> Cid:
        """Give the CID of the newest materialization of the asset, in the partition where there is one.

        Raises:
            ContentNotFound: it was never materialized, or not by this IO manager.
        """
        partition = context.partition_key if context.has_partition_key else None
        wanted = dg.AssetRecordsFilter(
            asset_key=context.asset_key, asset_partitions=None if partition is None else [partition]
        )
        records = context.instance.fetch_materializations(wanted, limit=1).records
        found = records[0].asset_materialization if records else None
        value = None if found is None else found.metadata.get(CID_KEY)
        if value is None or not isinstance(value.value, str):
            asset = context.asset_key.to_user_string()
            where = "" if partition is None else f" for batch {partition}"
            raise ContentNotFound(
                f"asset {asset} has no CID{where} in this Dagster instance",
                hint=f"materialize {asset} first: dagster asset materialize --select {asset} --partition {partition} "
                "-m dim_pipelines.definitions",
            )
        return Cid.parse(value.value)


class CidIOManagerResource(dg.ConfigurableIOManagerFactory[CidIOManager]):
    """Passes CIDs between assets; has no settings, because the content store is a resource of its own."""

    def create_io_manager(self, context: dg.InitResourceContext) -> CidIOManager:
        """Make the IO manager."""
        return CidIOManager()
