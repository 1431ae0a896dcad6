"""What follows when a node's owner, its clock or its models change."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from dim_pipelines.domain.advertisement import Advertisement, Reach, Speed
from dim_pipelines.domain.cid import RAW, Cid
from dim_pipelines.domain.node import Device, NodeDescription, describe_advertised
from dim_pipelines.node import state as state_module
from dim_pipelines.node.advertising import MAX_MODELS, Reachability, record_fields
from dim_pipelines.node.controls import Controls, Hours
from dim_pipelines.node.controls_file import ControlsFile, save_controls
from dim_pipelines.node.lifetime import NodeAddress
from dim_pipelines.node.speeds import SpeedBook
from dim_pipelines.node.state import NodeState
from dim_pipelines.wire.codec import description_from_wire, description_to_wire
from dim_pipelines.wire.v1 import node_pb2

DEVICE = Device("cpu", "cpu", "a processor", 1 << 30)
BASE = NodeDescription("n", bytes(32), "1", (DEVICE,), {"echo": "echo-1"}, "", 1000, id="k51")


class Models:
    def __init__(self) -> None:
        self.held = [Cid.of(RAW, b"a"), Cid.of(RAW, b"b")]

    def models(self) -> list[Cid]:
        return list(self.held)


class Sessions:
    def __init__(self) -> None:
        self.draining = False
        self.reasons: asyncio.Queue[str] = asyncio.Queue()

    async def hand_back(self, reason: str) -> None:
        self.reasons.put_nowait(reason)


class Network:
    reached: Reach | None = None
    owner = "ann"

    def __init__(self) -> None:
        self.changes = 0
        self.heard = asyncio.Event()

    def changed(self) -> None:
        self.changes += 1
        self.heard.set()

    async def status(self, message: node_pb2.NodeStatus) -> None:
        message.network = "k51"


class Node:
    """A state with all that it watches."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "controls.yaml"
        self.now = datetime(2026, 11, 23, 12, tzinfo=UTC)
        self.models, self.sessions, self.network = Models(), Sessions(), Network()
        self.state = NodeState(
            BASE, ControlsFile(self.path), self.models, SpeedBook(folder / "speeds.json"), local_time=lambda: self.now
        )
        self.state.network = self.network

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        watching = asyncio.create_task(self.state.watch(self.sessions))
        await asyncio.sleep(0)  # it has looked once
        try:
            yield
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    async def change(self) -> None:
        """Wait until the network was told of a change."""
        async with asyncio.timeout(60):
            await self.network.heard.wait()
        self.network.heard.clear()


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    monkeypatch.setattr(state_module, "LOOK_EVERY_S", 0.01)
    return Node(tmp_path)


async def test_a_change_of_the_owners_rules_is_published_and_closing_hands_the_sessions_back(node: Node) -> None:
    async with node.watched():
        save_controls(node.path, Controls(price=9))
        await node.change()
        assert node.state.advertise(draining=False).price == 9 and node.sessions.reasons.empty()
        save_controls(node.path, Controls(paused=True))
        assert "paused" in await asyncio.wait_for(node.sessions.reasons.get(), 60)
        await node.change()
        assert node.state.describe().paused
        save_controls(node.path, Controls())
        await node.change()
        assert not node.state.describe().paused


async def test_hours_close_and_open_the_node_as_the_clock_goes(node: Node) -> None:
    save_controls(node.path, Controls(hours=Hours.parse("22:00-07:00")))
    async with node.watched():
        assert "22:00-07:00" in await asyncio.wait_for(node.sessions.reasons.get(), 60)
        assert node.state.describe().paused
        node.network.heard.clear()
        node.now = node.now.replace(hour=23)
        await node.change()
        said = node.state.advertise(draining=False)
        assert not said.paused and said.hours == "22:00-07:00"


async def test_the_order_of_the_models_is_no_news_but_a_new_model_is(node: Node) -> None:
    async with node.watched():
        await asyncio.sleep(0.1)
        before = node.network.changes
        node.models.held.reverse()
        await asyncio.sleep(0.1)
        assert node.network.changes == before
        node.models.held.append(Cid.of(RAW, b"c"))
        node.network.heard.clear()
        await node.change()


def test_a_measured_speed_is_news(node: Node) -> None:
    speed = Speed(model=Cid.of(RAW, b"a"), numerics="n", rows_per_1000_s=5, spread_per_mille=1, samples=2)
    node.state.measured(speed)
    assert node.network.changes == 1 and node.state.describe().speeds == (speed,)


async def test_the_description_and_the_advertisement_say_the_same(node: Node) -> None:
    save_controls(
        node.path, Controls(max_sessions=3, owners=("ann",), licences=("MIT",), price=4, labels={"gpu": "a100"})
    )
    described = node.state.describe()
    said = Advertisement.decode(node.state.advertise(draining=True).encode())
    assert describe_advertised("k51", bytes(32), "ann", said) == replace(described, draining=True)
    assert description_from_wire(description_to_wire(described)) == described
    assert (await node.state.status()).network == "k51"


def test_an_advertisement_names_the_models_used_last_and_the_zone_of_the_hours(node: Node) -> None:
    node.models.held = [Cid.of(RAW, str(number).encode()) for number in range(MAX_MODELS + 5)]
    node.now = datetime.fromisoformat("2026-11-23T12:00:00+05:30")
    said = node.state.advertise(draining=False)
    assert said.models == tuple(node.models.held[:MAX_MODELS]) and said.utc_offset_min == 330


def test_a_record_names_endpoints_or_orchestrators_never_both(node: Node) -> None:
    said = node.state.advertise(draining=False)
    both = Reachability("direct", ("10.0.0.1:7",), ("k51o",))
    direct = record_fields(said, "k51", bytes(16), b"der", both, 5)
    assert direct.endpoints == ("10.0.0.1:7",) and direct.attached_to == () and direct.reach == "direct"
    attached = record_fields(said, "k51", bytes(16), b"der", replace(both, reach="attached"), 5)
    assert attached.endpoints == () and attached.attached_to == ("k51o",)
    assert Advertisement.decode(attached.advertisement) == said


def test_how_the_node_is_reached_is_announced_once_it_is_known(node: Node) -> None:
    announced: list[NodeAddress] = []
    here = NodeAddress("n", "unix:/s", 1, "ed25519:x", "")
    node.state.announce = announced.append
    node.state.reached(here)
    node.network.reached = "attached"
    node.state.reached(here)
    assert [each.reach for each in announced] == ["", "attached"]
