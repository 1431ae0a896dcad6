"""The nodes that compute, as a resource."""

import os
from collections.abc import Generator, Sequence
from contextlib import contextmanager

import dagster as dg
from pydantic import Field

from dim_pipelines.dispatch.local_nodes import find_local_nodes
from dim_pipelines.dispatch.node_pool import NodePool
from dim_pipelines.dispatch.open_pool import NETWORK, open_pool
from dim_pipelines.identity.membership import Membership
from dim_pipelines.orchestrator.running import find_running
from dim_pipelines.orchestrator.survey import Survey
from dim_pipelines.resources.content_store import resolve_ipfs
from dim_pipelines.resources.portal import process_portal
from dim_pipelines.settings import Home


class NodePoolResource(dg.ConfigurableResource[NodePool]):
    """The node daemons that batches may use."""

    addresses: list[str] = Field(
        default_factory=list,
        description="gRPC addresses (unix:PATH or HOST:PORT). Empty: the variable DIM_NODES (comma-separated), "
        "else the nodes of the network that this DIM_HOME runs batches for, else those of `dim up`, else the live "
        "nodes of DIM_HOME.",
    )

    def resolve(self) -> list[str]:
        """Give the addresses where no network's nodes are used: named ones, else of a running `dim up` or daemons."""
        if named := self.named():
            return named
        running = find_running(Home.at())
        if running is not None and running.nodes:
            return list(running.nodes)
        return [node.address for node in find_local_nodes(Home.at())]

    def named(self) -> list[str]:
        """Give the addresses that somebody wrote down: configured, else in DIM_NODES; none where nobody did."""
        return named_nodes(self.addresses)

    @contextmanager
    def yield_for_execution(self, context: dg.InitResourceContext) -> Generator[NodePool, None, None]:
        """Make the pool in the process's loop, where its channels live; close them when the run ends."""
        portal, home = process_portal(), Home.at()
        addresses = [NETWORK] if uses_network(home, self.named()) else self.resolve()
        survey = Survey.of(home, resolve_ipfs("")) if addresses == [NETWORK] else None
        pool = portal.call(open_pool(home, addresses, survey.look_where_nobody_does if survey else None))
        try:
            yield pool
        finally:
            portal.call(pool.close())
            if survey is not None:
                portal.call(survey.close())


def named_nodes(configured: Sequence[str]) -> list[str]:
    """Give the addresses that somebody wrote down: configured, else in DIM_NODES; none where nobody did."""
    if configured:
        return list(configured)
    return [part.strip() for part in os.environ.get("DIM_NODES", "").split(",") if part.strip()]


def uses_network(home: Home, named: Sequence[str]) -> bool:
    """Tell whether batches use the nodes of the home's network, and not some that were named or are local."""
    if named:
        return list(named) == [NETWORK]
    membership = Membership.load(home)
    return membership is not None and "run_host" in membership.roles
