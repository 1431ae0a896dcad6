"""The nodes that a batch may use: here those at some addresses; `discovered_nodes` has those of a network."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from dim_pipelines.dispatch.node_client import CALL_S, NodeClient
from dim_pipelines.domain.ipns import ipns_name
from dim_pipelines.domain.node import NodeDescription
from dim_pipelines.errors import ConfigurationError, DimError, NodeRefused, NodeUnreachable
from dim_pipelines.scheduling.attendance import Presence
from dim_pipelines.scheduling.reputation import Reputation, Seen


@dataclass(frozen=True, slots=True)
class PoolNode:
    """A node of a pool at one moment.

    Attributes:
        id: what it is known by: the IPNS name of its key, or its address as long as it never answered.
        name: its name for people, unique in the pool at that moment.
        presence: how it stands towards any batch.
        state: the same in the words of the table of nodes (`ELIGIBLE`), or `ANSWERS` or `SILENT` where there is none.
        reason: why it is not READY.
        node: what it says of itself; None where nobody knows.
        error: what was met when it was asked.
        place: changes when it is somewhere else, or was started again: an open session is lost then.
        sessions: sessions that it holds; None when unknown.
    """

    id: str
    name: str
    presence: Presence
    state: str
    reason: str = ""
    node: NodeDescription | None = None
    error: DimError | None = None
    place: object = None
    sessions: int | None = None


class NodePool:
    """The nodes at some addresses. Made and used in one event loop.

    Attributes:
        addresses: where the nodes listen, each once.
        network: the network that grants are for; `local` where there is none.
        interval_s: how often a running batch looks at the pool again, in seconds.
        patience_s: how long a batch waits when no node works, in seconds; None: the dispatcher's own.
        grows: nodes that nobody has heard of yet may appear.
    """

    network = "local"
    interval_s = 5.0
    patience_s: float | None = None
    grows = False

    def __init__(self, addresses: Sequence[str]) -> None:
        """Make a client per address; nothing connects yet.

        Raises:
            ConfigurationError: an address is malformed or not local.
        """
        self.addresses = tuple(dict.fromkeys(addresses))
        self._clients = [NodeClient(address) for address in self.addresses]
        self._seen: dict[str, PoolNode] = {}
        self._by_id: dict[str, NodeClient] = {}

    async def look(self, timeout: float = CALL_S) -> list[PoolNode]:
        """Tell how every node stands; here each is asked what it is, all at once.

        A node that has answered before keeps its id and name while it is silent.
        """
        answers = await asyncio.gather(*(client.describe(timeout) for client in self._clients), return_exceptions=True)
        found: dict[str, PoolNode] = {}
        taken: dict[str, str] = {}
        for client, answer in zip(self._clients, answers, strict=True):
            if isinstance(answer, BaseException) and not isinstance(answer, DimError):
                raise answer
            node = self._judge(client, answer, found, taken)
            found[node.id] = node
            if node.node is not None:
                self._by_id[node.id] = client
        return list(found.values())

    def _judge(
        self,
        client: NodeClient,
        answer: NodeDescription | DimError,
        found: Mapping[str, PoolNode],
        taken: dict[str, str],
    ) -> PoolNode:
        if isinstance(answer, DimError):
            known = self._seen.get(client.address)
            identity, name = (client.address, client.address) if known is None else (known.id, known.name)
            return PoolNode(identity, name, Presence.DOUBTFUL, "SILENT", answer.message, error=answer)
        identity = identity_of(answer)
        wrong = None
        if identity in found:
            wrong = f"it is the same node as {found[identity].name}"
        elif answer.name in taken:
            wrong = f"it is called {answer.name}, like the node at {taken[answer.name]}"
        if wrong is not None:
            error = ConfigurationError(wrong, hint="give nodes different names and keys")
            address = client.address
            return PoolNode(address, address, Presence.LEAVING, "ANSWERS", wrong, error=error)
        taken[answer.name] = client.address
        node = PoolNode(identity, answer.name, Presence.READY, "ANSWERS", node=answer)
        self._seen[client.address] = node
        return node

    async def describe(self, timeout: float = CALL_S) -> dict[str, NodeDescription | DimError]:
        """Tell what every node is.

        Returns:
            Node name → description; a node that cannot be used stands with the error, under its address where it
            never answered. So does a second node of one name: results are counted by name.
        """
        return {
            each.name: each.node
            if each.node is not None and each.presence is Presence.READY
            else each.error or NodeUnreachable(each.reason)
            for each in await self.look(timeout)
        }

    async def connect(self, node: str) -> NodeClient:
        """Give a client of a node (id) that `look` has found.

        Raises:
            NodeUnreachable: it does not answer, or `look` found no such node.
            NodeRefused: another node stands at its address now.
        """
        client = self._by_id.get(node)
        if client is None:
            raise NodeUnreachable(f"there is no node {node} in the pool")
        described = await client.describe()
        if identity_of(described) != node:
            raise NodeRefused(f"another node stands at {client.address} now, called {described.name}")
        return client

    def owner_of(self, owner: str) -> str:
        """Name the owner of a batch as the nodes know them."""
        return owner

    async def reputations(self, classes: Mapping[str, str]) -> dict[str, Reputation]:
        """Give what is known of nodes: id → numerics class, to id → reputation. Here nobody keeps any."""
        return {}

    async def keep_work(self, classes: Mapping[str, str], seen: Mapping[str, Seen]) -> None:
        """Keep what a batch saw of nodes, by id."""

    async def keep_refusals(self, batch: str, reasons: Mapping[str, Sequence[str]], chosen: Collection[str]) -> None:
        """Keep why nodes (ids) were, or were not, given a batch."""

    async def lost(self, node: str, why: str) -> None:
        """Note that an open session with a node (id) was lost."""

    async def close(self) -> None:
        """Close all channels."""
        await asyncio.gather(*(client.close() for client in self._clients))


def identity_of(node: NodeDescription) -> str:
    """Name a node by its key, whatever it is called."""
    return node.id or ipns_name(node.key)
