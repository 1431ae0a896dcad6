"""Nodes of a network made for a test: scripted nodes behind real mutual TLS, known from their signed records."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from prometheus_client import CollectorRegistry

from dim_pipelines.database.engine import Database, open_database
from dim_pipelines.discovery.node_states import Healthy
from dim_pipelines.discovery.node_table import NodeTable
from dim_pipelines.discovery.record import make_node_record, read_node_record
from dim_pipelines.discovery.reputation_table import ReputationTable
from dim_pipelines.dispatch.discovered_nodes import DiscoveredNodes
from dim_pipelines.domain.advertisement import AdvertisedDevice, Advertisement, Reach, RecordFields
from dim_pipelines.identity.keys import load_or_create_key, public_bytes
from dim_pipelines.identity.membership import Membership
from dim_pipelines.node.attachment import Attachment, doors_to
from dim_pipelines.node.blocks import BlockServicer
from dim_pipelines.orchestrator.link import LinkServicer
from dim_pipelines.telemetry.metrics import LinkMetrics, NodeMetrics, RpcMetrics
from dim_pipelines.testing.networks import MadeNetwork, now_ms
from dim_pipelines.testing.scripted_node import ScriptedNode
from dim_pipelines.wire.callers import peer_of
from dim_pipelines.wire.server import RpcServer, SecureListener
from dim_pipelines.wire.tls import ServerTls
from dim_pipelines.wire.v1 import blocks_pb2_grpc, node_pb2_grpc


@dataclass
class NetworkedNode:
    """A scripted node that is a member."""

    scripted: ScriptedNode
    membership: Membership
    key: Ed25519PrivateKey
    server: RpcServer
    boot: bytes = field(default_factory=lambda: os.urandom(16))
    sequence: int = 1
    attaching: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        return self.membership.name

    async def stop(self) -> None:
        if self.attaching is not None:
            self.attaching.cancel()
            await asyncio.wait([self.attaching])
        await self.server.stop(0)


class Network:
    """A network, its table of nodes in an orchestrator's home, and its relay."""

    def __init__(self, folder: Path) -> None:
        self.made = MadeNetwork(folder / "network")
        self.host = self.made.orchestrator
        self.database: Database = open_database(self.host.home.database_url)
        self.table = NodeTable(self.database)
        self.reputations = ReputationTable(self.database)
        self.nodes: list[NetworkedNode] = []
        self.pools: list[DiscoveredNodes] = []
        self.relay: RpcServer | None = None
        self.links: LinkServicer | None = None

    def tls(self, membership: Membership) -> ServerTls:
        return ServerTls(membership.server(), lambda: membership.roster.client_cas(), membership.guard)

    def spread(self) -> None:
        """Give every member the newest roster."""
        for node in self.nodes:
            roster = self.made.roster
            node.membership.keep_roster(roster.signed, roster.pages, now_ms())

    async def node(self, label: str, scripted: ScriptedNode, *, owner: str = "") -> NetworkedNode:
        """Start a member that serves TLS and nothing else; nobody knows its record yet."""
        membership = self.made.join(label, "node", owner=owner)
        key = load_or_create_key(membership.home.node_key)
        scripted.key = public_bytes(key)

        def register(server: grpc.aio.Server) -> list[str]:
            node_pb2_grpc.add_NodeServiceServicer_to_server(scripted, server)
            blocks = BlockServicer(scripted.store, NodeMetrics(CollectorRegistry()))
            blocks_pb2_grpc.add_BlockServiceServicer_to_server(blocks, server)
            return ["dim.v1.NodeService", "dim.v1.BlockService"]

        listener = SecureListener("127.0.0.1:0", self.tls(membership))
        server = await RpcServer.start("", register, RpcMetrics(CollectorRegistry()), secure=listener)
        node = NetworkedNode(scripted, membership, key, server)
        self.nodes.append(node)
        self.spread()
        return node

    def publish(self, node: NetworkedNode, *, healthy: bool = True, reach: Reach = "direct", **said: Any) -> None:
        """Take a record of the node into the table, as the orchestrator does."""
        fields: dict[str, Any] = {"endpoints": (node.server.secure_address,)}
        if reach == "attached":
            fields = {"attached_to": (self.host.name,)}
        fields |= {name: said.pop(name) for name in ("endpoints", "certificate") if name in said}
        advertisement = Advertisement(
            label=said.pop("label", node.scripted.name),
            version="test",
            devices=(AdvertisedDevice(id="cpu", kind="cpu", name="cpu", memory_bytes=1 << 30),),
            numerics={"echo": "echo/1"},
            max_input_bytes=64 << 20,
            max_sessions=16,
            **said,
        )
        record = RecordFields(
            network=self.made.id,
            boot=node.boot,
            issued_ms=now_ms(),
            reach=reach,
            certificate=fields.pop("certificate", node.membership.server().certificate),
            advertisement=advertisement.encode(),
            **fields,
        )
        node.sequence += 1
        raw = make_node_record(node.key, record, node.sequence, now_ms())
        self.table.offer(read_node_record(raw, node.name), self.made.roster.member(node.name), now_ms())
        if healthy:
            self.table.apply(node.name, Healthy(now_ms()), now_ms())

    async def attach(self, node: NetworkedNode) -> None:
        """Let the node hang on the orchestrator's relay, which is started where it does not run."""
        if self.relay is None:
            registry = CollectorRegistry()
            links = self.links = LinkServicer(
                peer_of,
                lambda name: self.made.roster.member(name).limits,
                LinkMetrics(registry),
                on_attached=lambda name: self.table.set_relay(name, self.host.name),
                on_detached=lambda name: None,
            )
            self.relay = await RpcServer.start(
                "",
                lambda server: [links.register(server)],
                RpcMetrics(registry),
                secure=SecureListener("127.0.0.1:0", self.tls(self.host)),
            )
            me = self.host.member.model_copy(update={"addresses": (self.relay.secure_address,)})
            self.made.admit(me)
            self.spread()
        membership = node.membership
        attachment = Attachment(
            node.name,
            node.boot,
            lambda: doors_to(membership.orchestrators(), membership.client("node")),
            node.server.secure_address,
            changed=lambda: None,
        )
        node.attaching = asyncio.create_task(attachment.run())
        async with asyncio.timeout(60):
            while not attachment.attached_to:  # noqa: ASYNC110 - it announces nothing to a test
                await asyncio.sleep(0.01)

    def pool(self) -> DiscoveredNodes:
        """Open the pool of the orchestrator's home, which is a run host."""
        pool = DiscoveredNodes(self.table, self.host, self.reputations)
        pool.interval_s = 0.05  # type: ignore[misc]
        self.pools.append(pool)
        return pool

    async def close(self) -> None:
        for pool in self.pools:
            await pool.close()
        for node in self.nodes:
            await node.stop()
        if self.links is not None:
            self.links.close()
        if self.relay is not None:
            await self.relay.stop(0)
        self.database.close()
