"""A daemon in a network: found, used, ruled by its owner, attached, cut off; with a real orchestrator in a process."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dim_pipelines.database.engine import open_database
from dim_pipelines.discovery.node_states import FAREWELL
from dim_pipelines.discovery.node_table import NodeRow, NodeTable
from dim_pipelines.discovery.record import NodeRecord, read_node_record
from dim_pipelines.dispatch.tunnel import open_tunnel
from dim_pipelines.domain.events import TaskDone
from dim_pipelines.domain.ipns import ipns_name
from dim_pipelines.domain.roster import Member
from dim_pipelines.identity.keys import load_or_create_key, public_bytes
from dim_pipelines.identity.membership import Membership
from dim_pipelines.node.controls import Controls
from dim_pipelines.node.controls_file import controls_path, save_controls
from dim_pipelines.node.process import NodeProcess
from dim_pipelines.orchestrator.founding import adopt, found, open_editor
from dim_pipelines.settings import Home
from dim_pipelines.wire.channel import open_channel
from dim_pipelines.wire.tls import PinnedPeer
from dim_pipelines.wire.v1 import node_pb2, node_pb2_grpc

PATIENCE_S = 60.0


class Network:
    """A network whose orchestrator runs, and the nodes of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = Home.at(folder / "o")
        self.id = found(self.home, "orchestrator", "operator", now_ms()).network
        self.key = load_or_create_key(self.home.user_key)
        self.table = NodeTable(open_database(self.home.database_url))
        self._orchestrator: subprocess.Popen[bytes] | None = None
        self._nodes: list[NodeProcess] = []

    def start(self) -> None:
        """Run the orchestrator."""
        command = [sys.executable, "-m", "dim_pipelines.cli", "orchestrator", "start", "--json"]
        command += ["--home", str(self.home.root), "--ipfs", "embedded"]
        with (self.folder / "orchestrator.log").open("ab") as log:
            self._orchestrator = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log)
        assert self._orchestrator.stdout
        assert json.loads(self._orchestrator.stdout.readline())["network"] == self.id

    def stop(self) -> None:
        """End the orchestrator."""
        if self._orchestrator:
            self._orchestrator.terminate()
            self._orchestrator.communicate(timeout=PATIENCE_S)
            self._orchestrator = None

    def node(self, label: str, *options: str) -> NodeProcess:
        """Run a node of the network."""
        folder = self.folder / label
        folder.mkdir(exist_ok=True)
        adopt(self.home, [(folder, label)], now_ms())
        node = NodeProcess.start(folder, name=label, engines=["echo"], options=options)
        self._nodes.append(node)
        return node

    def stop_nodes(self) -> None:
        for node in self._nodes:
            node.kill()
        self._nodes.clear()

    @property
    def membership(self) -> Membership:
        """The orchestrator's, as it is on the disk now."""
        membership = Membership.load(self.home)
        assert membership
        return membership

    async def row(self, node: NodeProcess, wanted: Callable[[NodeRow], object]) -> NodeRow:
        """Wait for what the orchestrator knows of a node."""

        async def look() -> NodeRow | None:
            row = await asyncio.to_thread(self.table.row, node.id)
            return row if row is not None and wanted(row) else None

        return await until(look)

    @asynccontextmanager
    async def client(self, node: NodeProcess, client: Any, address: str = "") -> AsyncIterator[Any]:
        """Give the tests' dispatcher on a channel with TLS, as a run host."""
        row = await self.row(node, lambda row: row.raw)
        peer = PinnedPeer(node.id, record_of(row).fields.certificate)
        channel = open_channel(address or node.secure, peer=peer, client=self.membership.client("run_host"))
        made = client("", self.key, channel)
        try:
            yield made
        finally:
            await made.close()


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def record_of(row: NodeRow) -> NodeRecord:
    assert row.raw
    return read_node_record(row.raw, row.name)


async def until(look: Callable[[], Awaitable[Any]]) -> Any:
    """Poll until there is something."""
    end = time.monotonic() + PATIENCE_S
    while not (found := await look()):
        assert time.monotonic() < end, "it did not come"
        await asyncio.sleep(0.05)
    return found


async def status_of(node: NodeProcess, wanted: Callable[[node_pb2.NodeStatus], object]) -> node_pb2.NodeStatus:
    async with open_channel(node.address) as channel:
        stub = node_pb2_grpc.NodeServiceStub(channel)

        async def look() -> node_pb2.NodeStatus | None:
            said = await stub.GetStatus(node_pb2.GetStatusRequest(), timeout=PATIENCE_S)
            return said if wanted(said) else None

        found = await until(look)
        assert isinstance(found, node_pb2.NodeStatus)
        return found


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    made = Network(tmp_path_factory.mktemp("network"))
    try:
        made.start()
        yield made
    finally:
        made.stop()


@pytest.fixture
def nodes(network: Network) -> Iterator[Network]:
    yield network
    network.stop_nodes()


@pytest.fixture(scope="module")
def one(network: Network) -> Iterator[NodeProcess]:
    """A node of the network for tests that leave it as they found it."""
    folder = network.folder / "one"
    folder.mkdir()
    adopt(network.home, [(folder, "one")], now_ms())
    with NodeProcess.start(folder, name="one", engines=["echo"]) as node:
        yield node


def dim(*arguments: str, home: Path, ok: bool = True) -> dict[str, Any]:
    """Run `dim … --json`."""
    environment = os.environ | {"DIM_HOME": str(home)}
    command = [sys.executable, "-m", "dim_pipelines.cli", *arguments, "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE_S * 2)
    assert (done.returncode == 0) is ok, done.stderr
    return dict(json.loads(done.stdout))


async def test_a_node_is_found_and_computes_for_a_run_host(network: Network, one: NodeProcess, dispatcher: Any) -> None:
    row = await network.row(one, lambda row: row.state == "ELIGIBLE")
    assert (row.label, row.owner, row.reach) == ("one", "operator", "direct")
    record = record_of(row)
    assert record.fields.network == network.id and record.fields.endpoints == (one.secure,)
    assert record.advertisement.numerics.keys() == {"echo"} and not record.advertisement.paused
    async with network.client(one, dispatcher) as client:
        described = await client.node.DescribeNode(node_pb2.DescribeNodeRequest())
        assert described.id == one.id and described.owner == "operator" and described.max_sessions == 64
        stream = await client.open(await client.put_echo_plan(), batch="b", network=network.id)
        assert stream.opened, stream.refused
        await stream.send(await client.put_shards(20))
        await stream.until(lambda stream: len(stream.outcomes) == 20)
        assert all(isinstance(item, TaskDone) for item in stream.outcomes)
        stranger = await client.open(
            await client.put_echo_plan(), batch="s", network=network.id, key=Ed25519PrivateKey.generate()
        )
        assert stranger.refused.code == "forbidden" and "no member" in stranger.refused.reason
        elsewhere = await client.open(await client.put_echo_plan(), batch="e", network=ipns_name(bytes(32)))
        assert elsewhere.refused.code == "forbidden"


async def test_what_a_node_says_of_itself(network: Network, one: NodeProcess) -> None:
    await network.row(one, lambda row: row.state == "ELIGIBLE")
    said = await status_of(one, lambda said: said.state == "ELIGIBLE" and said.roster_seen_ms)
    assert said.network == network.id and said.reach == "direct" and list(said.endpoints) == [one.secure]
    assert [(road.name, road.last_error) for road in said.roads] == [("announce", "")] and said.sequence > 0
    assert said.roster_version == network.membership.roster.version and said.certificates["node"] > now_ms()
    announced = json.loads((one.home / "node" / "node.json").read_text())
    assert announced["secure"] == one.secure and announced["id"] == one.id and announced["reach"] == "direct"
    printed = await asyncio.to_thread(dim, "node", "status", home=one.home)
    assert printed["running"] and printed["state"] == "ELIGIBLE" and printed["description"]["id"] == one.id


async def test_a_paused_node_hands_its_work_back_says_so_and_resumes(
    network: Network, one: NodeProcess, dispatcher: Any
) -> None:
    async with network.client(one, dispatcher) as client:
        plan = await client.put_echo_plan(parameters={"sleep_ms": 300})
        stream = await client.open(plan, batch="paused", network=network.id)
        await stream.send((await client.put_shards(2))[:2])
        await asyncio.to_thread(dim, "node", "pause", home=one.home)
        await stream.until(lambda stream: stream.refused)
        assert stream.refused.code == "node_busy" and "paused" in stream.refused.reason
        # What ran was finished, what waited was handed back; nothing is lost without a word.
        assert len(stream.outcomes) == 2
        assert all(isinstance(item, TaskDone) or item.handed_back for item in stream.outcomes)
        again = await client.open(plan, batch="again", network=network.id)
        assert again.refused.code == "node_busy" and "paused" in again.refused.reason
        await network.row(one, lambda row: row.raw and record_of(row).advertisement.paused)
        await asyncio.to_thread(dim, "node", "resume", home=one.home)
        await network.row(one, lambda row: row.raw and not record_of(row).advertisement.paused)
        assert (await client.open(plan, batch="again", network=network.id, epoch=2)).opened


async def test_the_owners_lists_are_enforced_and_advertised(
    network: Network, one: NodeProcess, dispatcher: Any
) -> None:
    path = controls_path(Home.at(one.home))
    save_controls(path, Controls(owners=("ann",), licences=("Apache-2.0",), price=7, labels={"gpu": "none"}))
    try:
        row = await network.row(one, lambda row: row.raw and record_of(row).advertisement.owners)
        said = record_of(row).advertisement
        assert said.owners == ("ann",) and said.licences == ("Apache-2.0",)
        assert said.price == 7 and said.labels == {"gpu": "none"}
        async with network.client(one, dispatcher) as client:
            plan = await client.put_echo_plan()
            bob = await client.open(plan, batch="bob", network=network.id, owner="bob")
            assert bob.refused.code == "forbidden" and "works for ann, not for bob" in bob.refused.reason
            ann = await client.open(plan, batch="ann", network=network.id, owner="ann")
            assert ann.refused.code == "node_refused" and "MIT" in ann.refused.reason
            save_controls(path, Controls(owners=("ann",), max_sessions=1))
            first = await client.open(plan, batch="ann", network=network.id, owner="ann", epoch=2)
            assert first.opened
            second = await client.open(plan, batch="ann-2", network=network.id, owner="ann")
            assert second.refused.code == "node_busy" and "1 sessions are open" in second.refused.reason
            newer = await client.open(plan, batch="ann", network=network.id, owner="ann", epoch=3)
            assert newer.opened
        path.write_text("hours: never\n")
        wrong = await status_of(one, lambda said: said.controls_error)
        assert "not hours" in wrong.controls_error and list(wrong.description.owners) == ["ann"]
    finally:
        path.unlink(missing_ok=True)
    await network.row(one, lambda row: row.raw and not record_of(row).advertisement.owners)


async def test_a_measured_speed_is_kept_shown_and_advertised(
    network: Network, one: NodeProcess, dispatcher: Any
) -> None:
    async with network.client(one, dispatcher) as client:
        stream = await client.open(await client.put_echo_plan(), batch="held", network=network.id)
        assert stream.opened
        await stream.end()
    printed = await asyncio.to_thread(dim, "node", "benchmark", "--seconds", "1", home=one.home)
    (speed,) = printed["speeds"]
    assert speed["rows_per_s"] > 0 and speed["samples"] >= 2 and speed["numerics"].startswith("echo-1/")
    row = await network.row(one, lambda row: row.raw and record_of(row).advertisement.speeds)
    (said,) = record_of(row).advertisement.speeds
    assert str(said.model) == speed["model"] and said.rows_per_1000_s == round(speed["rows_per_s"] * 1000)
    assert said.model in record_of(row).advertisement.models
    assert json.loads((one.home / "node" / "speeds.json").read_text())[0]["model"] == speed["model"]


async def test_a_node_that_nobody_can_dial_is_attached_and_computes_all_the_same(
    nodes: Network, dispatcher: Any
) -> None:
    node = nodes.node("attached", "--advertise", "127.0.0.1:1")
    row = await nodes.row(node, lambda row: row.state == "ELIGIBLE" and row.relay)
    assert row.reach == "attached" and row.relay == nodes.membership.name
    assert record_of(row).fields.endpoints == ()
    said = await status_of(node, lambda said: said.attached_to)
    assert said.reach == "attached" and "127.0.0.1:1" in said.reach_reason
    membership = nodes.membership
    (relay,) = membership.orchestrators()
    tunnel = await open_tunnel(relay, node.id, membership.client("run_host"))
    try:
        async with nodes.client(node, dispatcher, tunnel.address) as client:
            stream = await client.open(await client.put_echo_plan(), batch="far", network=nodes.id)
            assert stream.opened, stream.refused
            await stream.send(await client.put_shards(20))
            await stream.until(lambda stream: len(stream.outcomes) == 20)
            assert all(isinstance(item, TaskDone) for item in stream.outcomes)
    finally:
        await tunnel.close()


async def test_a_revoked_signers_sessions_are_cut_and_a_revoked_node_knows_it(nodes: Network, dispatcher: Any) -> None:
    signer = Ed25519PrivateKey.generate()
    editor = open_editor(nodes.home, now_ms())
    member = Member(key=public_bytes(signer), roles=("orchestrator",), owner="x", label="second", admitted_ms=now_ms())
    await asyncio.to_thread(editor.admissions.admit, editor.membership.roster, [member], now_ms())
    node = nodes.node("revoked")
    version = open_editor(nodes.home, now_ms()).membership.roster.version
    await status_of(node, lambda said: said.roster_version >= version)
    async with nodes.client(node, dispatcher) as client:
        plan = await client.put_echo_plan()
        stream = await client.open(plan, batch="cut", network=nodes.id, key=signer)
        assert stream.opened, stream.refused
        editor = open_editor(nodes.home, now_ms())
        name = ipns_name(public_bytes(signer))
        await asyncio.to_thread(editor.admissions.revoke, editor.membership.roster, name, "key lost", now_ms())
        await stream.until(lambda stream: stream.refused)
        assert stream.refused.code == "forbidden" and "key lost" in stream.refused.reason
        again = await client.open(plan, batch="cut", network=nodes.id, key=signer, epoch=2)
        assert again.refused.code == "forbidden" and "key lost" in again.refused.reason
    editor = open_editor(nodes.home, now_ms())
    await asyncio.to_thread(editor.admissions.revoke, editor.membership.roster, node.id, "sold", now_ms())
    await nodes.row(node, lambda row: row.state == "GONE" and "sold" in row.reason)
    assert node.alive


async def test_a_machine_joins_by_an_invite_serves_others_and_says_farewell(
    nodes: Network, dispatcher: Any, tmp_path: Path
) -> None:
    invited = await asyncio.to_thread(dim, "network", "invite", "--role", "node", home=nodes.home.root)
    await asyncio.to_thread(dim, "network", "join", invited["invite"], "--label", "guest", home=tmp_path)
    with NodeProcess.start(tmp_path, name="", engines=["echo"]) as node:
        assert node.name == "guest"  # as the roster calls it
        assert (await nodes.row(node, lambda row: row.state == "ELIGIBLE")).label == "guest"
        listed = await asyncio.to_thread(dim, "nodes", home=tmp_path)  # a node's owner sees the network, too
        (guest,) = [each for each in listed["nodes"] if each["name"] == "guest"]
        assert (guest["node"], guest["state"], guest["reach"]) == (node.id, "ELIGIBLE", "direct")
        assert listed["network"] == nodes.id and guest["devices"][0]["id"] == "cpu"
        async with nodes.client(node, dispatcher) as client:
            stream = await client.open(await client.put_echo_plan(), batch="guest", network=nodes.id)
            assert stream.opened, stream.refused
        node.terminate()
        left = await nodes.row(node, lambda row: row.state == "SUSPECT")
        assert left.reason == FAREWELL  # its own word, before anybody could miss it
        assert await asyncio.to_thread(node.stop, PATIENCE_S) == 0
