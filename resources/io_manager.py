"""The IO manager by CID: what passes between assets is a name of content, never the content.

`handle_output` puts the CID into the materialization; `load_input` reads it back from the newest
materialization of that asset *and partition*, so one asset of a partition can be run alone, on another
day or machine. What is not promised: a CID does not say that the content is still held; the checks do.
"""

import dagster as dg

from dim_pipelines.domain.cid import Cid
from dim_pipelines.errors import DimError
from dim_pipelines.orchestrator.dagster_daemon import CID_KEY, find_cid


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
            dagster.Failure: it was never materialized, or by something that keeps no CID.
        """
        partition = context.partition_key if context.has_partition_key else None
        try:
            return find_cid(context.instance, context.asset_key, partition)
        except DimError as error:
            raise dg.Failure(description=f"{error.message}\n{error.hint}", allow_retries=False) from error


class CidIOManagerResource(dg.ConfigurableIOManagerFactory[CidIOManager]):
    """Passes CIDs between assets; has no settings, because the content store is a resource of its own."""

    def create_io_manager(self, context: dg.InitResourceContext) -> CidIOManager:
        """Make the IO manager."""
        return CidIOManager()
