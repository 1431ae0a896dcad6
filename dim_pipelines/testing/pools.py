"""A pool of scripted nodes whose standing a test sets, and which remembers what a batch told it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from dim_pipelines.dispatch.node_client import CALL_S
from dim_pipelines.dispatch.node_pool import NodePool, PoolNode, identity_of
from dim_pipelines.errors import DimError
from dim_pipelines.scheduling.attendance import Presence, Standing
from dim_pipelines.scheduling.reputation import Reputation, Seen


@dataclass(frozen=True, slots=True)
class Refused:
    """What was kept of a look: why nodes were not used, and which were."""

    reasons: dict[str, tuple[str, ...]]
    chosen: frozenset[str]


class ScriptedPool(NodePool):
    """Some addresses, of which a test says how they stand.

    Attributes:
        standings: address → how the node stands; READY when left out.
        hidden: addresses of nodes that are not in the pool at the moment.
        places: address → where the node is; a change is a move.
        known: id → reputation.
        looks: how often it was looked at.
        kept, refused, losses: what the batch told it, in order.
    """

    interval_s = 0.05

    def __init__(self, addresses: Sequence[str], *, grows: bool = False, patience_s: float | None = None) -> None:
        """Make a pool of these nodes, all of them READY."""
        super().__init__(addresses)
        self.grows, self.patience_s = grows, patience_s
        self.standings: dict[str, Standing] = {}
        self.hidden: set[str] = set()
        self.places: dict[str, object] = {}
        self.known: dict[str, Reputation] = {}
        self.looks = 0
        self.kept: list[tuple[dict[str, str], dict[str, Seen]]] = []
        self.refused: list[Refused] = []
        self.losses: list[tuple[str, str]] = []

    async def look(self, timeout: float = CALL_S) -> list[PoolNode]:
        """Tell how every node stands, as the test has it; what a node says of itself is asked for."""
        found: list[PoolNode] = []
        for address, client in zip(self.addresses, self._clients, strict=True):
            if address in self.hidden:
                continue
            standing = self.standings.get(address, Standing(Presence.READY))
            try:
                node = await client.describe(timeout)
            except DimError as error:
                found.append(PoolNode(address, address, Presence.DOUBTFUL, "SILENT", error.message, error=error))
                continue
            self._by_id[identity_of(node)] = client
            found.append(
                PoolNode(
                    identity_of(node),
                    node.name,
                    standing.presence,
                    standing.presence.name,
                    standing.reason,
                    node,
                    place=self.places.get(address),
                )
            )
        self.looks += 1
        return found

    async def reputations(self, classes: Mapping[str, str]) -> dict[str, Reputation]:
        """Give what the test knows."""
        return {id: self.known[id] for id in classes if id in self.known}

    async def keep_work(self, classes: Mapping[str, str], seen: Mapping[str, Seen]) -> None:
        """Remember it."""
        self.kept.append((dict(classes), dict(seen)))

    async def keep_refusals(self, batch: str, reasons: Mapping[str, Sequence[str]], chosen: Collection[str]) -> None:
        """Remember it."""
        self.refused.append(Refused({id: tuple(why) for id, why in reasons.items()}, frozenset(chosen)))

    async def lost(self, node: str, why: str) -> None:
        """Remember it."""
        self.losses.append((node, why))
