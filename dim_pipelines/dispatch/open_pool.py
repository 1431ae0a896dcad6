"""Which nodes a run uses: those it is given, those of the home's network, or those of this machine."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from dim_pipelines.database.engine import open_database
from dim_pipelines.discovery.node_table import NodeTable
from dim_pipelines.discovery.reputation_table import ReputationTable
from dim_pipelines.dispatch.discovered_nodes import DiscoveredNodes, Search
from dim_pipelines.dispatch.local_nodes import find_local_nodes
from dim_pipelines.dispatch.node_pool import NodePool
from dim_pipelines.errors import ConfigurationError
from dim_pipelines.identity.membership import Membership
from dim_pipelines.scheduling.ranking import Weights
from dim_pipelines.settings import Home, ranking_settings

NETWORK = "network"
"""In the place of addresses: the nodes of the home's network, and no others."""


async def open_pool(home: Home, addresses: Sequence[str] = (), search: Search | None = None) -> NodePool:
    """Open the pool that a home's runs use; the caller closes it.

    Args:
        home: the home.
        addresses: where nodes listen, or the one word `network`. Left out: the nodes of the home's network where it
            runs batches for one, else the live nodes of this home.
        search: how nodes of the network are looked for while none is known that takes work.

    Raises:
        ConfigurationError: an address is wrong, or `network` was said and this home runs batches for none.
    """
    if addresses and list(addresses) != [NETWORK]:
        return NodePool(addresses)
    discovered = await asyncio.to_thread(_discovered, home)
    if discovered is not None:
        table, membership, reputations = discovered
        return DiscoveredNodes(table, membership, reputations, search)
    if addresses:
        raise ConfigurationError(
            "this home runs batches for no network", hint="dim network init, or ask its operator for the role run_host"
        )
    return NodePool([node.address for node in await asyncio.to_thread(find_local_nodes, home)])


def _discovered(home: Home) -> tuple[NodeTable, Membership, ReputationTable] | None:
    membership = Membership.load(home)
    if membership is None or "run_host" not in membership.roles:
        return None
    database = open_database(home.database_url)
    return NodeTable(database), membership, ReputationTable(database)


def read_weights(home: Home) -> Weights:
    """Read how nodes are ranked: `ranking` in the home's settings.yaml, and the variable DIM_RANKING above it.

    Raises:
        ConfigurationError: the file is no YAML, or a weight is unknown or no number.
    """
    values: Mapping[str, object] = ranking_settings(home)
    return Weights.read(values)
