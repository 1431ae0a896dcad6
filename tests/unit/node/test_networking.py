"""A node's part in its network where nobody answers: it starts all the same, and each road goes its own way."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dim_pipelines.bus.bus import Bus
from dim_pipelines.bus.memory import MemoryBus
from dim_pipelines.content.memory import MemoryContentStore
from dim_pipelines.discovery.announcement import read_announcement
from dim_pipelines.discovery.names import NameService
from dim_pipelines.discovery.publisher import NODES
from dim_pipelines.discovery.record import read_node_record
from dim_pipelines.domain.advertisement import Advertisement
from dim_pipelines.errors import ConfigurationError
from dim_pipelines.identity.keys import load_or_create_key
from dim_pipelines.node import networking
from dim_pipelines.node.advertising import Reachability
from dim_pipelines.node.networking import NodeNetwork, find_membership
from dim_pipelines.testing.networks import MadeNetwork
from dim_pipelines.wire.v1 import node_pb2

SAID = Advertisement(label="n", version="1", devices=(), numerics={}, max_input_bytes=1, max_sessions=1)


class HangingNames:
    """A name service that never answers."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()

    async def put(self, name: str, record: bytes) -> None:
        self.asked.set()
        await asyncio.Event().wait()

    async def get(self, name: str, timeout_s: float = 5.0) -> bytes:
        await asyncio.Event().wait()
        return b""

    async def close(self) -> None: ...


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MadeNetwork:
    monkeypatch.setattr(networking, "FIRST_PROBE_S", 0.05)
    return MadeNetwork(tmp_path)


def network_of(
    made: MadeNetwork, *, names: NameService | None = None, bus: Bus | None = None,
    roster_changed: Callable[[], None] = lambda: None, **more: Any
) -> NodeNetwork:  # fmt: skip
    membership = made.join("n", "node", owner="ann")
    key = load_or_create_key(membership.home.node_key)
    return NodeNetwork(
        membership, key, store=MemoryContentStore(), names=names, bus=bus, advertise=lambda: SAID,
        roster_changed=roster_changed, **more,
    )  # fmt: skip


def test_only_the_nodes_own_membership_is_a_nodes(made: MadeNetwork, tmp_path: Path) -> None:
    node = made.join("n", "node")
    found = find_membership(node.home, load_or_create_key(node.home.node_key))
    assert found is not None and found.name == node.name
    founder = made.orchestrator.home
    assert find_membership(founder, load_or_create_key(founder.node_key)) is None


def test_a_malformed_address_is_refused_before_anything_starts(made: MadeNetwork) -> None:
    with pytest.raises(ConfigurationError, match="not an address"):
        network_of(made, advertised=["nowhere"])


async def test_a_hung_road_keeps_no_other_waiting(made: MadeNetwork) -> None:
    names, bus = HangingNames(), MemoryBus(made.id, made.key)
    network = network_of(made, names=names, bus=bus)
    assert network.secure.listen == "127.0.0.1:0"
    async with bus.subscribe(NODES) as hints, network.running("127.0.0.1:9"):
        assert network.reached is None
        hint = await asyncio.wait_for(anext(aiter(hints)), 60)
        name, raw = read_announcement(hint.body)
        record = read_node_record(raw, name)
        assert name == network.membership.name and record.fields.endpoints == ("127.0.0.1:9",)
        assert record.fields.boot == network.boot and record.advertisement == SAID
        await asyncio.wait_for(names.asked.wait(), 60)
        status = node_pb2.NodeStatus()
        await network.status(status)
        assert {road.name for road in status.roads} == {"announce", "bus", "names"}
        assert status.sequence == record.sequence and "no orchestrator" in status.state_reason
        assert status.certificates["node"] > 0 and status.secure == "127.0.0.1:9" and network.owner == "ann"
        await asyncio.wait_for(network.say_farewell(), 60)


async def test_a_new_server_certificate_is_shown_and_published(
    made: MadeNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(networking, "SERVER_LOOK_S", 0.01)
    bus = MemoryBus(made.id, made.key)
    network = network_of(made, bus=bus)
    first = network.secure.tls.identity.certificate_pem
    async with bus.subscribe(NODES) as hints, network.running("127.0.0.1:9"):
        seen = []
        (network.membership.home.network / "server.crt").unlink()
        async with asyncio.timeout(60):
            async for hint in hints:
                seen.append(read_node_record(*reversed(read_announcement(hint.body))).fields.certificate)
                if seen[-1] == network.membership.server().certificate:
                    break
    assert network.secure.tls.identity.certificate_pem != first


async def test_a_node_that_is_reached_directly_again_keeps_the_tunnels_that_are_in_use(
    made: MadeNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    used, ended = asyncio.Event(), asyncio.Event()

    class Used:
        """An attachment with a tunnel."""

        attached_to = ""

        def __init__(self, *said: Any, **more: Any) -> None: ...

        async def run(self) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

        async def unused(self) -> None:
            used.set()
            await left.wait()

    left = asyncio.Event()
    monkeypatch.setattr(networking, "Attachment", Used)
    network = network_of(made, bus=MemoryBus(made.id, made.key))
    attached, direct = Reachability("attached"), Reachability("direct", ("127.0.0.1:9",))
    async with network.running("127.0.0.1:9"):
        network._reached(attached)
        await asyncio.sleep(0)
        network._reached(direct)
        await asyncio.wait_for(used.wait(), 60)
        network._reached(attached)  # and back: it stays attached
        left.set()
        for _ in range(10):
            await asyncio.sleep(0)
        assert not ended.is_set()
        left.clear()
        used.clear()
        network._reached(direct)
        await asyncio.wait_for(used.wait(), 60)
        assert not ended.is_set()
        left.set()
        await asyncio.wait_for(ended.wait(), 60)


async def test_a_node_that_is_revoked_says_so_and_asks_for_its_sessions_to_be_judged_again(made: MadeNetwork) -> None:
    judged: list[str] = []
    network = network_of(made, roster_changed=lambda: judged.append("again"))
    membership = network.membership
    async with network.running("127.0.0.1:9"):
        assert not network.revoked
        made.revoke(membership.name, "sold")
        membership.keep_roster(made.roster.signed, made.roster.pages, made.roster.roster.issued_ms)
        assert "sold" in network.revoked and judged == ["again"]
