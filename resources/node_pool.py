"""The nodes that compute, as a resource."""

import os
from collections.abc import Generator, Sequence
from contextlib import contextmanager

import dagster as dg
from pydantic import Field

from dim_pipelines.dispatch.local_nodes import find_local_nodes
from dim_pipelines.dispatch.node_pool import NodePool
from dim_pipelines.orchestrator.running import find_running
from dim_pipelines.resources.portal import process_portal
from dim_pipelines.settings import Home


class NodePoolResource(dg.ConfigurableResource[NodePool]):
    """The node daemons that batches may use."""

    addresses: list[str] = Field(
        default_factory=list,
        description="gRPC addresses (unix:PATH or HOST:PORT). Empty: the variable DIM_NODES (comma-separated), "
        "else the nodes of `dim up` for this DIM_HOME, else the live nodes of DIM_HOME.",
    )

    def resolve(self) -> list[str]:
        """Give the addresses: configured, else from DIM_NODES, else of a running `dim up`, else of the live nodes."""
        if named := self.named():
            return named
        running = find_running(Home.at())
        if running is not None and running.nodes:
            return list(running.nodes)
        return [node.address for node in find_local_nodes(Home.at())]

    def named(self) -> list[str]:
        """Give the addresses that somebody wrote down: configured, else in DIM_NODES; none where nobody did."""
        if self.addresses:
            return list(self.addresses)
        return [part.strip() for part in os.environ.get("DIM_NODES", "").split(",") if part.strip()]

    @contextmanager
    def yield_for_execution(self, context: dg.InitResourceContext) -> Generator[NodePool, None, None]:
        """Make the pool in the process's loop, where its channels live; close them when the run ends."""
        portal = process_portal()
        pool = portal.call(_open(self.resolve()))
        try:
            yield pool
        finally:
            portal.call(pool.close())


async def _open(addresses: Sequence[str]) -> NodePool:
    return NodePool(addresses)
