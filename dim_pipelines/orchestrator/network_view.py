"""What a process that is no orchestrator sees of its network: the node table, and a road of its own to records."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from dim_pipelines.discovery.node_table import NodeTable


@dataclass(frozen=True, slots=True)
class NetworkView:
    """A home's view of its network.

    Attributes:
        network: IPNS name of the network's root key; empty where the home is in none.
        table: the table of nodes.
        in_use: this home's batches run on these nodes; otherwise on some that were named, or on local ones.
        quorum: how many nodes should take work.
        survey: looks for records and at nodes' health itself, within the seconds given, and says what came of it;
            None where an orchestrator that runs here does so.
    """

    network: str
    table: NodeTable
    in_use: bool = True
    quorum: int = 1
    survey: Callable[[float], Coroutine[Any, Any, str]] | None = None
