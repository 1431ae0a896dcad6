"""`OrchestratorService`: what members ask of an orchestrator, and Join at its door."""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any, Final
from urllib.parse import unquote

import grpc

from dim_pipelines.discovery.node_table import NodeRow, NodeTable
from dim_pipelines.discovery.resolver import Resolver
from dim_pipelines.domain.cid import Cid
from dim_pipelines.errors import DimError, Forbidden, NodeUnreachable, QuotaExceeded
from dim_pipelines.identity.membership import Membership
from dim_pipelines.identity.roster import RosterView
from dim_pipelines.orchestrator.changes import Changes, heard
from dim_pipelines.orchestrator.dialback import DialBack
from dim_pipelines.orchestrator.door import Door
from dim_pipelines.wire.access import Peer
from dim_pipelines.wire.callers import peer_of
from dim_pipelines.wire.v1 import orchestrator_pb2, orchestrator_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]

WATCHES: Final = 16
"""How many streams of WatchRoster and WatchNodes a member may hold."""
LOOK_S: Final = 1.0
"""How often a stream looks at what other processes may have changed."""
TARPIT_S: Final = 1.0
"""How long a refusal of too many announcements takes: whoever floods waits, and costs nothing meanwhile."""
TARPITS: Final = 256
"""How many such refusals of one member wait at a time; the others are given at once."""
_ROSTERS: Final = 32  # of how many versions the pages are remembered, for sending changes only
_REFUSALS: Final = 10
_MOST_REFUSALS: Final = 100


class OrchestratorServicer(orchestrator_pb2_grpc.OrchestratorServiceServicer):
    """Answers members; at the door only Join is let through to it."""

    def __init__(
        self,
        membership: Membership,
        table: NodeTable,
        resolver: Resolver,
        door: Door,
        dial_back: DialBack,
    ) -> None:
        """Make the servicer of an orchestrator."""
        self._membership, self._table, self._resolver = membership, table, resolver
        self._door, self._dial_back = door, dial_back
        self._rosters, self._nodes = Changes(), Changes()
        self._pages: OrderedDict[int, frozenset[Cid]] = OrderedDict()
        self._watches: Counter[str] = Counter()
        self._held: Counter[str] = Counter()
        self._stopping = False
        membership.on_roster(self._roster_changed)
        self._remember(membership.roster)

    def close(self) -> None:
        """End the open streams, so that who follows turns to another orchestrator at once."""
        self._stopping = True
        self._rosters.ring()
        self._nodes.ring()

    def node_changed(self, name: str) -> None:
        """Have the streams of WatchNodes look at the table."""
        self._nodes.ring()

    async def Announce(
        self, request: orchestrator_pb2.AnnounceRequest, context: Context
    ) -> orchestrator_pb2.AnnounceReply:
        """Take in a node's record; a node announces itself, an orchestrator any node."""
        caller = _caller(context)
        if caller.role == "node" and caller.name != request.name:
            raise Forbidden("a node announces its own record only")
        try:
            row = await self._resolver.offer(request.name, request.record, "announce", caller.name)
        except QuotaExceeded:
            await self._slow_down(caller.name)
            raise
        return orchestrator_pb2.AnnounceReply(state=row.state, reason=row.reason)

    async def Join(self, request: orchestrator_pb2.JoinRequest, context: Context) -> orchestrator_pb2.JoinReply:
        """Admit a holder of an invite, or give a member new certificates."""
        return await self._door.join(request, observed_address(context))

    async def WatchRoster(
        self, request: orchestrator_pb2.WatchRosterRequest, context: Context
    ) -> AsyncIterator[orchestrator_pb2.RosterUpdate]:
        """Send the newest roster unless the caller has it, and each newer one; pages that it has are left out."""
        version = request.version
        with self._watching(_caller(context)):
            await context.send_initial_metadata(())  # the caller hears that it is followed, news or none
            while True:
                ring = self._rosters.next
                view = self._membership.roster
                if view.version > version:
                    yield self._update(view, version)
                    version = view.version
                if not request.follow:
                    return
                await ring.wait()
                self._check_open()

    async def ListNodes(
        self, request: orchestrator_pb2.ListNodesRequest, context: Context
    ) -> orchestrator_pb2.ListNodesReply:
        """Give every node that was heard of."""
        rows = await asyncio.to_thread(self._table.rows)
        return orchestrator_pb2.ListNodesReply(nodes=[_state(row) for row in rows])

    async def WatchNodes(
        self, request: orchestrator_pb2.WatchNodesRequest, context: Context
    ) -> AsyncIterator[orchestrator_pb2.NodeState]:
        """Send every node, then every change; of several changes of a node that nobody has read yet the last."""
        change = 0
        with self._watching(_caller(context)):
            await context.send_initial_metadata(())
            while True:
                ring = self._nodes.next
                for row in await asyncio.to_thread(self._table.changed_since, change):
                    change = max(change, row.change)
                    yield _state(row)
                await heard(ring, LOOK_S)
                self._check_open()

    async def GetNode(
        self, request: orchestrator_pb2.GetNodeRequest, context: Context
    ) -> orchestrator_pb2.GetNodeReply:
        """Give what is known of a node, and why batches were or were not given to it."""
        caller = _caller(context)
        if caller.role == "node" and caller.name != request.name:
            raise Forbidden("a node asks of itself only")
        row = await asyncio.to_thread(self._table.row, request.name)
        limit = min(request.limit or _REFUSALS, _MOST_REFUSALS)
        kept = await asyncio.to_thread(self._table.refusals, request.name, limit)
        refusals = [
            orchestrator_pb2.Refusal(batch=each.batch, chosen=each.chosen, reasons=each.reasons, at_ms=each.at_ms)
            for each in kept
        ]
        return orchestrator_pb2.GetNodeReply(
            node=None if row is None else _state(row), refusals=refusals, now_ms=time.time_ns() // 1_000_000
        )

    async def ProbeReach(
        self, request: orchestrator_pb2.ProbeReachRequest, context: Context
    ) -> orchestrator_pb2.ProbeReachReply:
        """Dial the caller's endpoints."""
        observed = observed_address(context)
        reached = await self._dial_back.probe(
            _caller(context).name, observed, list(request.endpoints), request.certificate
        )
        return orchestrator_pb2.ProbeReachReply(reachable=reached.endpoints, observed=observed, reason=reached.reason)

    async def ListPeers(
        self, request: orchestrator_pb2.ListPeersRequest, context: Context
    ) -> orchestrator_pb2.ListPeersReply:
        """Give the orchestrators of the network."""
        return orchestrator_pb2.ListPeersReply(
            peers=[
                orchestrator_pb2.Peer(
                    name=each.name, label=each.label, addresses=each.addresses, certificate=each.certificate
                )
                for each in self._membership.orchestrators()
            ]
        )

    def _roster_changed(self, view: RosterView) -> None:
        self._remember(view)
        self._rosters.ring()
        self._nodes.ring()

    def _check_open(self) -> None:
        if self._stopping:
            raise NodeUnreachable("the orchestrator is stopping")

    def _remember(self, view: RosterView) -> None:
        self._pages[view.version] = frozenset(view.roster.pages)
        while len(self._pages) > _ROSTERS:
            self._pages.popitem(last=False)

    def _update(self, view: RosterView, version: int) -> orchestrator_pb2.RosterUpdate:
        has = self._pages.get(version, frozenset())
        pages = [page for cid, page in zip(view.roster.pages, view.pages, strict=True) if cid not in has]
        return orchestrator_pb2.RosterUpdate(roster=view.signed, pages=pages)

    @contextmanager
    def _watching(self, caller: Peer) -> Iterator[None]:
        if self._watches[caller.name] >= WATCHES:
            raise QuotaExceeded(f"{WATCHES} streams are open", hint="close some")
        self._watches[caller.name] += 1
        try:
            yield
        finally:
            self._watches[caller.name] -= 1
            if not self._watches[caller.name]:
                del self._watches[caller.name]

    async def _slow_down(self, name: str) -> None:
        if self._held[name] >= TARPITS:
            return
        self._held[name] += 1
        try:
            await asyncio.sleep(TARPIT_S)
        finally:
            self._held[name] -= 1
            if not self._held[name]:
                del self._held[name]


def observed_address(context: Context) -> str:
    """Give the IP address that a caller calls from; empty where it has none."""
    kind, _, rest = (context.peer() or "").partition(":")
    host = unquote(rest).rpartition(":")[0].removeprefix("[").removesuffix("]").partition("%")[0]
    try:
        return str(ipaddress.ip_address(host)) if kind in ("ipv4", "ipv6") else ""
    except ValueError:
        return ""


def _caller(context: Context) -> Peer:
    caller = peer_of(context)
    if caller is None:
        raise DimError("this server is not without TLS")
    return caller


def _state(row: NodeRow) -> orchestrator_pb2.NodeState:
    return orchestrator_pb2.NodeState(
        name=row.name,
        label=row.label,
        owner=row.owner,
        state=row.state,
        reason=row.reason,
        reach=row.reach,
        since_ms=row.since_ms,
        record=row.raw or b"",
    )
