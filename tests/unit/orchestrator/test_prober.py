"""The prober: nodes that hang on other orchestrators, and endpoints of which only some work."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from dim_pipelines.database.engine import open_database
from dim_pipelines.discovery.node_states import State
from dim_pipelines.discovery.node_table import NodeTable
from dim_pipelines.discovery.record import make_node_record, read_node_record
from dim_pipelines.domain.advertisement import Advertisement, RecordFields
from dim_pipelines.errors import DimError, NodeUnreachable
from dim_pipelines.identity.keys import load_or_create_key
from dim_pipelines.identity.membership import Membership
from dim_pipelines.orchestrator.prober import Prober
from dim_pipelines.telemetry.metrics import RpcMetrics
from dim_pipelines.testing.networks import MadeNetwork
from dim_pipelines.wire.server import RpcServer, SecureListener
from dim_pipelines.wire.tls import ServerTls


class OtherOrchestrators:
    """What they say, as the test has it."""

    def __init__(self) -> None:
        self.said: dict[str, str] | DimError = {}
        self.asked = 0

    async def states(self, orchestrator: str) -> Mapping[str, str]:
        self.asked += 1
        if isinstance(self.said, DimError):
            raise self.said
        return self.said


class World:
    """A network and its table."""

    def __init__(self, folder: Path) -> None:
        self.network = MadeNetwork(folder)
        self.table = NodeTable(open_database(f"sqlite:///{folder / 'dim.db'}"))
        self.others = OtherOrchestrators()
        self.attached: set[str] = set()

    def publish(self, node: Membership, **said: Any) -> None:
        now = time.time_ns() // 1_000_000
        ad = Advertisement(
            label=node.member.label, version="1", devices=(), numerics={}, max_input_bytes=1, max_sessions=1
        )
        fields = RecordFields(
            network=node.network, boot=bytes(16), issued_ms=now, certificate=node.server().certificate,
            advertisement=ad.encode(), **said,
        )  # fmt: skip
        raw = make_node_record(load_or_create_key(node.home.node_key), fields, now, now)
        self.table.offer(read_node_record(raw, node.name), node.member, now)

    async def until(self, name: str, state: State, reason: str = "") -> None:
        async with asyncio.timeout(60):
            while True:
                row = self.table.row(name)
                if row is not None and row.state == state and reason in row.reason:
                    return
                await asyncio.sleep(0.02)

    @asynccontextmanager
    async def probing(self) -> AsyncIterator[Prober]:
        own = self.network.orchestrator
        prober = Prober(
            self.table, own.name, own.client("orchestrator"), lambda: self.attached, self.others,
            interval_s=0.1, timeout_s=10.0,
        )  # fmt: skip
        running = asyncio.create_task(prober.run())
        try:
            yield prober
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def test_a_node_that_hangs_on_another_orchestrator_is_as_alive_as_that_one_says(world: World) -> None:
    other, node = world.network.join("second", "orchestrator"), world.network.join("gpu", "node")
    world.publish(node, reach="attached", attached_to=(other.name,))
    world.others.said = {node.name: "ELIGIBLE"}
    async with world.probing() as prober:
        await world.until(node.name, "ELIGIBLE")
        world.others.said = {node.name: "SUSPECT"}
        await world.until(node.name, "SUSPECT", "its orchestrator says SUSPECT")
        world.others.said = NodeUnreachable("gone")
        await world.until(node.name, "SUSPECT", "its orchestrator does not answer: gone")
        # It turns to this orchestrator: its link here counts, whatever others say.
        world.table.set_relay(node.name, world.network.orchestrator.name)
        world.attached.add(node.name)
        prober.soon(node.name)
        await world.until(node.name, "ELIGIBLE")
        world.attached.clear()
        await world.until(node.name, "SUSPECT", "attached to no orchestrator")


async def test_all_nodes_of_another_orchestrator_are_asked_for_at_once(world: World) -> None:
    other = world.network.join("second", "orchestrator")
    nodes = [world.network.join(f"gpu-{number}", "node") for number in range(5)]
    for node in nodes:
        world.publish(node, reach="attached", attached_to=(other.name,))
    world.others.said = {node.name: "ELIGIBLE" for node in nodes}
    async with world.probing() as prober:
        prober._interval_s = 60.0
        for node in nodes:
            await world.until(node.name, "ELIGIBLE")
    assert world.others.asked == 1


async def test_one_endpoint_that_works_is_enough(world: World) -> None:
    node = world.network.join("gpu", "node")
    tls = ServerTls(node.server(), lambda: world.network.roster.client_cas(), node.guard)
    make: Callable[..., Any] = RpcServer.start
    server = await make(
        "", lambda server: [], RpcMetrics(CollectorRegistry()), secure=SecureListener("127.0.0.1:0", tls)
    )
    try:
        world.publish(node, reach="direct", endpoints=("127.0.0.1:1", server.secure_address))
        async with world.probing():
            await world.until(node.name, "ELIGIBLE")
            await server.stop(0)
            await world.until(node.name, "SUSPECT", "does not answer health checks")
    finally:
        await server.stop(0)


async def test_a_record_without_an_endpoint_is_said_to_have_none(world: World) -> None:
    node = world.network.join("gpu", "node")
    world.publish(node, reach="direct")
    async with world.probing():
        await world.until(node.name, "VERIFIED", "names no endpoint")
