"""The home's network as a resource: the node table, and whether somebody else keeps it up to date."""

from collections.abc import Generator
from contextlib import contextmanager

import dagster as dg
from pydantic import Field

from dim_pipelines.database.engine import open_database
from dim_pipelines.discovery.node_table import NodeTable
from dim_pipelines.identity.membership import Membership
from dim_pipelines.orchestrator.meeting_point import find_orchestrator
from dim_pipelines.orchestrator.network_view import NetworkView
from dim_pipelines.orchestrator.survey import Survey
from dim_pipelines.resources.content_store import resolve_ipfs
from dim_pipelines.resources.node_pool import named_nodes, uses_network
from dim_pipelines.settings import Home


class NetworkResource(dg.ConfigurableResource[NetworkView]):
    """What is known of the nodes of the home's network.

    It has the settings of three other resources again instead of them: Dagster 1.13 warns of itself where resources
    are nested.
    """

    url: str = Field(default="", description="As of the resource `database`: the node table is one of its tables.")
    addresses: list[str] = Field(
        default_factory=list,
        description="As of the resource `node_pool`: nodes named there or in DIM_NODES take the network's place.",
    )
    ipfs: str = Field(default="", description="As of the resource `content_store`: names stand in the same IPFS.")
    quorum: int = Field(default=1, ge=0, description="How many nodes should take work; the check `quorum` tells.")

    @contextmanager
    def yield_for_execution(self, context: dg.InitResourceContext) -> Generator[NetworkView, None, None]:
        """Read the membership anew, because a home may join, and be revoked, while a code server runs."""
        home = Home.at()
        membership = Membership.load(home)
        table = NodeTable(open_database(self.url or home.database_url))
        survey = None
        if membership is not None and find_orchestrator(home) is None:
            survey = _survey(membership, table, resolve_ipfs(self.ipfs)).look
        yield NetworkView(
            network="" if membership is None else membership.network,
            table=table,
            in_use=uses_network(home, named_nodes(self.addresses)),
            quorum=self.quorum,
            survey=survey,
        )


_surveys: dict[tuple[str, str, str], Survey] = {}


def _survey(membership: Membership, table: NodeTable, ipfs: str) -> Survey:
    """Give the survey that the process has for a home: it remembers since when it listens and whom it asked."""
    key = (str(membership.home.root), membership.network, ipfs)
    if key not in _surveys:
        _surveys[key] = Survey(membership, table, ipfs)
    return _surveys[key]
