"""A real orchestrator in this process, on loopback with TLS, and nodes that are a server with a signed record."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from prometheus_client import CollectorRegistry

from dim_pipelines.database.engine import open_database
from dim_pipelines.discovery.node_table import NodeRow, NodeTable
from dim_pipelines.discovery.record import make_node_record
from dim_pipelines.domain.advertisement import Advertisement, RecordFields
from dim_pipelines.domain.roster import Limits, Role
from dim_pipelines.identity.invites import format_invite
from dim_pipelines.identity.joining import join_network
from dim_pipelines.identity.keys import load_or_create_key
from dim_pipelines.identity.membership import Membership
from dim_pipelines.orchestrator.daemon import OrchestratorAddress, OrchestratorConfig, serve
from dim_pipelines.orchestrator.founding import found
from dim_pipelines.orchestrator.invites import Admission, Invites
from dim_pipelines.settings import Home
from dim_pipelines.telemetry.metrics import RpcMetrics
from dim_pipelines.wire.channel import open_channel
from dim_pipelines.wire.server import RpcServer, SecureListener
from dim_pipelines.wire.tls import PinnedPeer, ServerTls, certificate_hash
from dim_pipelines.wire.v1 import orchestrator_pb2, orchestrator_pb2_grpc


def now_ms() -> int:
    return time.time_ns() // 1_000_000


class Running:
    """An orchestrator that serves."""

    def __init__(self, home: Home, address: OrchestratorAddress) -> None:
        self.home, self.address = home, address
        self.database = open_database(home.database_url)
        self.table = NodeTable(self.database)

    @property
    def membership(self) -> Membership:
        """The home's membership as it lies on the disk."""
        found_now = Membership.load(self.home)
        assert found_now is not None
        return found_now

    def invite(self, *roles: Role, lifetime_ms: int = 3_600_000, at_ms: int = 0) -> str:
        own = self.membership.member
        assert own.certificate is not None
        made = Invites(self.database).make(
            self.membership.network,
            [(door, certificate_hash(own.certificate)) for door in own.doors],
            Admission(roles or ("node",), "ada", Limits()),
            lifetime_ms=lifetime_ms,
            now_ms=at_ms or now_ms(),
        )
        return format_invite(made)

    async def join(self, home: Path, *roles: Role, **said: Any) -> Membership:
        return await join_network(Home.at(home), self.invite(*roles), label=home.name, **said)

    @asynccontextmanager
    async def channel(self, member: Membership, role: Role = "node") -> AsyncIterator[grpc.aio.Channel]:
        certificate = self.membership.member.certificate
        assert certificate is not None
        peer = PinnedPeer(self.address.name, certificate)
        async with open_channel(self.address.address, peer=peer, client=member.client(role)) as channel:
            yield channel

    @asynccontextmanager
    async def stub(self, member: Membership, role: Role = "node") -> AsyncIterator[Any]:
        async with self.channel(member, role) as channel:
            yield orchestrator_pb2_grpc.OrchestratorServiceStub(channel)


class NodeServer:
    """A member that answers health checks and signs its record."""

    def __init__(self, member: Membership) -> None:
        self.member = member
        self.address = "127.0.0.1:0"
        self.boot = os.urandom(16)
        self._server: RpcServer | None = None

    async def start(self) -> None:
        tls = ServerTls(self.member.server(), lambda: self.member.roster.client_cas(), self.member.guard)
        self._server = await RpcServer.start(
            "", lambda server: [], RpcMetrics(CollectorRegistry()), secure=SecureListener(self.address, tls)
        )
        self.address = self._server.secure_address

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(0)
            self._server = None

    def record(self, **said: Any) -> bytes:
        at = said.pop("at_ms", now_ms())
        ad = Advertisement(
            label=self.member.member.label, version="1", devices=(), numerics={}, max_input_bytes=1, max_sessions=1
        )
        fields: dict[str, Any] = {
            "network": self.member.network, "boot": self.boot, "issued_ms": at, "reach": "direct",
            "endpoints": (self.address,), "certificate": self.member.server().certificate,
        }  # fmt: skip
        whole = RecordFields(advertisement=ad.encode(), **(fields | said))
        return make_node_record(load_or_create_key(self.member.home.node_key), whole, at, at)

    def announcement(self, **said: Any) -> orchestrator_pb2.AnnounceRequest:
        return orchestrator_pb2.AnnounceRequest(name=self.member.name, record=self.record(**said))


async def until(condition: Callable[[], object]) -> Any:
    """Wait for something that really happens somewhere else."""
    async with asyncio.timeout(60):
        while not (found_now := condition()):  # noqa: ASYNC110 - what is waited for sets no event
            await asyncio.sleep(0.05)
    return found_now


async def until_state(table: NodeTable, name: str, state: str) -> NodeRow:
    """Wait until a node is in a state, and give its row."""

    def look() -> NodeRow | None:
        row = table.row(name)
        return row if row is not None and row.state == state else None

    row: NodeRow = await until(look)
    return row


@asynccontextmanager
async def running(home: Home, **settings: Any) -> AsyncIterator[Running]:
    """Run the orchestrator of a home while the block runs."""
    ready: asyncio.Future[OrchestratorAddress] = asyncio.get_running_loop().create_future()
    serving = asyncio.create_task(serve(OrchestratorConfig(home, **settings), ready=ready.set_result))
    await asyncio.wait([serving, ready], return_when=asyncio.FIRST_COMPLETED, timeout=60)
    if serving.done():
        serving.result()
    try:
        yield Running(home, ready.result())
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)


@pytest.fixture
async def orchestrator(tmp_path: Path) -> AsyncIterator[Running]:
    home = Home.at(tmp_path / "orchestrator")
    await asyncio.to_thread(found, home, "first", "operator", now_ms())
    async with running(home) as one:
        yield one
    one.database.close()


@pytest.fixture
async def node(orchestrator: Running, tmp_path: Path) -> AsyncIterator[NodeServer]:
    server = NodeServer(await orchestrator.join(tmp_path / "gpu", "node"))
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
def run_orchestrator() -> Callable[..., Any]:
    return running


@pytest.fixture
def wait_until() -> Callable[[Callable[[], object]], Awaitable[Any]]:
    return until


@pytest.fixture
def wait_for_state() -> Callable[[NodeTable, str, str], Awaitable[NodeRow]]:
    return until_state


@pytest.fixture
def make_node() -> Callable[[Membership], NodeServer]:
    return NodeServer
