"""Following another orchestrator: what it says wrongly ends a stream, never the following."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
from prometheus_client import CollectorRegistry

from dim_pipelines.database.engine import open_database
from dim_pipelines.discovery.node_table import NodeTable
from dim_pipelines.discovery.resolver import Resolver
from dim_pipelines.identity.keys import load_or_create_key
from dim_pipelines.orchestrator import peers as peers_module
from dim_pipelines.orchestrator.peers import Peers
from dim_pipelines.settings import Home
from dim_pipelines.telemetry.metrics import RpcMetrics
from dim_pipelines.testing.networks import MadeNetwork
from dim_pipelines.wire.server import RpcServer, SecureListener
from dim_pipelines.wire.tls import ServerTls
from dim_pipelines.wire.v1 import orchestrator_pb2, orchestrator_pb2_grpc


class Other(orchestrator_pb2_grpc.OrchestratorServiceServicer):
    """Another orchestrator: its first words on the roster are wrong."""

    def __init__(self) -> None:
        self.again = asyncio.Event()
        self._asked = False

    async def WatchRoster(self, request: Any, context: Any) -> AsyncIterator[orchestrator_pb2.RosterUpdate]:
        first, self._asked = not self._asked, True
        if first:
            yield orchestrator_pb2.RosterUpdate(roster=b"garbage")
        else:
            self.again.set()
        await asyncio.Event().wait()

    async def WatchNodes(self, request: Any, context: Any) -> AsyncIterator[orchestrator_pb2.NodeState]:
        await asyncio.Event().wait()
        yield orchestrator_pb2.NodeState()

    def register(self, server: grpc.aio.Server) -> Sequence[str]:
        orchestrator_pb2_grpc.add_OrchestratorServiceServicer_to_server(self, server)
        return [orchestrator_pb2.DESCRIPTOR.services_by_name["OrchestratorService"].full_name]


async def test_an_orchestrator_that_said_garbage_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers_module, "_PAUSE_S", (0.01, 0.02))
    network = MadeNetwork(tmp_path)
    home = Home.at(tmp_path / "other")
    other = network.join("other", "orchestrator", key=load_or_create_key(home.user_key), home=home)
    servicer = Other()
    tls = ServerTls(other.server(), lambda: other.roster.client_cas(), other.guard)
    server = await RpcServer.start(
        "", servicer.register, RpcMetrics(CollectorRegistry()), secure=SecureListener("127.0.0.1:0", tls)
    )
    database = open_database(f"sqlite:///{tmp_path / 'dim.db'}")
    follower = network.orchestrator
    network.admit(
        other.member.model_copy(
            update={"addresses": (server.secure_address,), "certificate": other.server().certificate}
        )
    )
    resolver = Resolver(NodeTable(database), follower, None, None)
    following = asyncio.create_task(Peers(follower, follower.client("orchestrator"), resolver).run())
    try:
        async with asyncio.timeout(60):
            await servicer.again.wait()
        assert not following.done()
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await server.stop(0)
        database.close()
