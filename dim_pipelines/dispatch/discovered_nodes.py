"""The nodes of a network that the table of nodes knows: no address is ever typed.

A direct node is reached at the endpoints of its signed record, an attached one through a tunnel of its orchestrator;
either way with mutual TLS, pinned to the certificate in that record. When the table cannot be read, or nobody keeps it,
what was last known good is used.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from typing import Any, Final, ParamSpec, TypeVar

from dim_pipelines.discovery.node_table import NodeRow, NodeTable
from dim_pipelines.discovery.record import NodeRecord
from dim_pipelines.discovery.reputation_table import ReputationTable
from dim_pipelines.dispatch.node_client import CALL_S, NodeClient
from dim_pipelines.dispatch.node_pool import NodePool, PoolNode
from dim_pipelines.dispatch.tunnel import open_tunnel
from dim_pipelines.errors import ConfigurationError, DimError, NodeUnreachable
from dim_pipelines.identity.membership import Membership
from dim_pipelines.scheduling.attendance import Presence
from dim_pipelines.scheduling.reputation import Reputation, Seen
from dim_pipelines.wire.address import Address
from dim_pipelines.wire.tls import PinnedPeer

PATIENCE_S: Final = 60.0
"""How long a batch waits for a node: a record is published every 60 s where hints do not come through."""
_REACH_S: Final = 2.0
"""How long each of several endpoints has to take a connection, in seconds."""
SEARCH_S: Final = 5.0
"""How long a search for nodes may take, and how long after one has begun the next one may, in seconds."""
LOCAL_OWNER: Final = "local"
"""The owner of batches that were submitted before a network existed, or without naming a member."""

P = ParamSpec("P")
T = TypeVar("T")
Search = Callable[[float], Coroutine[Any, Any, str]]
"""Looks for nodes, within the seconds given, keeps what it finds in the table, and says in a line what came of it."""

_log = logging.getLogger(__name__)

_PRESENCE: Final = {
    "SEEN": Presence.DOUBTFUL,
    "VERIFIED": Presence.DOUBTFUL,
    "ELIGIBLE": Presence.READY,
    "SUSPECT": Presence.DOUBTFUL,
    "GONE": Presence.GONE,
}


class DiscoveredNodes(NodePool):
    """The pool of a network. Made and used in one event loop."""

    interval_s = 1.0
    patience_s = PATIENCE_S
    grows = True

    def __init__(
        self, table: NodeTable, membership: Membership, reputations: ReputationTable, search: Search | None = None
    ) -> None:
        """Use the nodes of a table; nothing connects yet.

        Args:
            table: the nodes.
            membership: this home's.
            reputations: of the nodes.
            search: begun while the table has no node that takes work, because perhaps nobody keeps it; None: not.

        Raises:
            ConfigurationError: this home has no client certificate as a run host.
        """
        super().__init__(())
        self.network = membership.network
        self._table, self._membership, self._reputations = table, membership, reputations
        self._keys = membership.client("run_host")
        self._search = search
        self._searching: asyncio.Task[None] | None = None
        self._searched_at = -SEARCH_S
        self._rows: dict[str, NodeRow] = {}
        self._change = 0
        self._open: dict[str, tuple[object, NodeClient]] = {}
        self._opening: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    def owner_of(self, owner: str) -> str:
        """Name the member that a batch belongs to; a batch of this machine belongs to this home's member."""
        return self._membership.member.owner if owner == LOCAL_OWNER else owner

    async def look(self, timeout: float = CALL_S) -> list[PoolNode]:
        """Tell how every node stands, as the table knows it and the roster lets it.

        Raises:
            ConfigurationError: the table cannot be read and nothing was ever known.
        """
        try:
            async with asyncio.timeout(timeout):
                changed = await asyncio.to_thread(self._read)
        except (TimeoutError, DimError) as error:
            if not self._rows:
                raise ConfigurationError(
                    f"the table of nodes cannot be read: {error or 'it does not answer'}"
                ) from error
            _log.warning("the table of nodes cannot be read, what was last known is used: %s", error)
            changed = []
        for row in changed:
            self._rows[row.name] = row
            self._change = max(self._change, row.change)
        looked = [self._stand(row) for row in self._rows.values()]
        if all(each.presence is not Presence.READY for each in looked):
            self._begin_search()
        return looked

    def _begin_search(self) -> None:
        now = time.monotonic()
        if self._search is not None and self._searching is None and now - self._searched_at >= SEARCH_S:
            self._searched_at = now
            self._searching = asyncio.create_task(self._search_with(self._search))

    async def _search_with(self, search: Search) -> None:
        try:
            _log.info("no node takes work; looked for some: %s", await search(SEARCH_S))
        except DimError as error:
            _log.warning("no nodes could be looked for: %s", error)
        finally:
            self._searching = None

    def _read(self) -> list[NodeRow]:
        self._membership.reload()
        return self._table.changed_since(self._change)

    def _stand(self, row: NodeRow) -> PoolNode:
        presence, reason = _PRESENCE[row.state], row.reason
        revoked = self._membership.roster.revoked.get(row.name)
        if revoked is not None:
            presence, reason = Presence.GONE, f"revoked: {revoked.reason}"
        elif row.name not in self._membership.roster.members:
            presence, reason = Presence.GONE, "it is no member of the network"
        record = row.record
        if record is None:
            return PoolNode(row.name, row.label, presence, row.state, reason or "no record of it was accepted yet")
        if record.advertisement.draining and presence is not Presence.GONE:
            presence = Presence.LEAVING  # its own word: what it has begun may end
        fields = record.fields
        place = (fields.boot, fields.reach, fields.endpoints, fields.certificate)
        return PoolNode(row.name, row.label, presence, row.state, reason, row.description, place=place)

    async def connect(self, node: str) -> NodeClient:
        """Give a client of a node (IPNS name) where its record says it is.

        Raises:
            NodeUnreachable: it has no record, takes no connection, or hangs on no orchestrator that the roster knows.
        """
        async with self._opening[node]:
            row = await self._row(node)
            record = None if row is None else row.record
            if row is None or record is None:
                raise NodeUnreachable("no record of it was accepted")
            route = (record.fields.reach, record.fields.endpoints, record.fields.certificate, row.relay)
            known = self._open.get(node)
            if known is not None and known[0] == route and record.fields.reach == "attached":
                return known[1]
            address = "" if record.fields.reach == "attached" else await _reachable(record.fields.endpoints)
            if known is not None and known[0] == route and known[1].address == address:
                return known[1]
            client = await self._tunnelled(row, record) if not address else self._direct(record, address)
            self._open[node] = (route, client)
            if known is not None:
                await known[1].close()
            return client

    async def _row(self, node: str) -> NodeRow | None:
        """Read where a node is now: it may have moved since the last look."""
        try:
            row = await asyncio.to_thread(self._table.row, node)
        except DimError:
            row = None  # the last known place is better than none
        if row is not None:
            self._rows[node] = row
        return self._rows.get(node)

    def _direct(self, record: NodeRecord, address: str) -> NodeClient:
        return NodeClient(address, peer=PinnedPeer(record.name, record.fields.certificate), keys=self._keys)

    async def _tunnelled(self, row: NodeRow, record: NodeRecord) -> NodeClient:
        known = {each.name: each for each in self._membership.orchestrators()}
        wanted = ([row.relay] if row.relay is not None else []) + list(record.fields.attached_to)
        relay = next((known[name] for name in wanted if name in known), None)
        if relay is None:
            raise NodeUnreachable("it is attached to no orchestrator that the roster knows")
        tunnel = await open_tunnel(relay, record.name, self._keys)
        try:
            peer = PinnedPeer(record.name, record.fields.certificate)
            return NodeClient(tunnel.address, peer=peer, keys=self._keys, tunnel=tunnel)
        except BaseException:
            await tunnel.close()
            raise

    async def reputations(self, classes: Mapping[str, str]) -> dict[str, Reputation]:
        """Give what is known of nodes: IPNS name → numerics class, to IPNS name → reputation."""
        found = await self._asked(self._reputations.get, classes)
        return {} if found is None else found

    async def keep_work(self, classes: Mapping[str, str], seen: Mapping[str, Seen]) -> None:
        """Add what a batch saw of nodes to their reputations."""
        await self._asked(self._reputations.add, classes, seen, time.time_ns() // 1_000_000)

    async def keep_refusals(self, batch: str, reasons: Mapping[str, Sequence[str]], chosen: Collection[str]) -> None:
        """Keep why nodes were, or were not, given a batch."""
        await self._asked(self._table.keep_refusals, batch, reasons, chosen)

    async def lost(self, node: str, why: str) -> None:
        """Tell the table that an open session with a node was lost."""
        await self._asked(self._table.lost, node, why)

    async def _asked(self, ask: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
        """Ask the database in a thread; one that does not answer costs a batch its notes, never its work."""
        try:
            return await asyncio.to_thread(ask, *args, **kwargs)
        except DimError as error:
            _log.warning("the tables of nodes do not answer: %s", error)
            return None

    async def close(self) -> None:
        """Close all channels and tunnels."""
        if self._searching is not None:
            self._searching.cancel()
            await asyncio.wait([self._searching])
        clients = [client for _, client in self._open.values()]
        self._open.clear()
        await asyncio.gather(*(client.close() for client in clients))


async def _reachable(endpoints: Sequence[str]) -> str:
    """Give the first endpoint that takes a connection; a single one is taken at its word.

    Raises:
        NodeUnreachable: there is none, or none answers.
    """
    endpoints = [each for each in endpoints if not each.startswith("unix:")]  # a record names other machines' places
    if len(endpoints) == 1:
        return endpoints[0]
    trying = [asyncio.create_task(_knock(endpoint)) for endpoint in endpoints]
    try:
        for answer in asyncio.as_completed(trying):
            if (found := await answer) is not None:
                return found
    finally:
        for task in trying:
            task.cancel()
        if trying:
            await asyncio.wait(trying)
    listed = ", ".join(endpoints) or "it names no endpoint"
    raise NodeUnreachable(f"none of its endpoints takes a connection ({listed})")


async def _knock(endpoint: str) -> str | None:
    try:
        where = Address.parse(endpoint, secure=True)
        async with asyncio.timeout(_REACH_S):
            _, writer = await asyncio.open_connection(where.host, where.port)
    except (OSError, TimeoutError, DimError):
        return None
    writer.close()
    return endpoint
