"""Batches over the nodes of a network: found by their records and reached over real mutual TLS."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from dim_pipelines.dispatch.discovered_nodes import DiscoveredNodes
from dim_pipelines.dispatch.explain import explain
from dim_pipelines.dispatch.open_pool import open_pool
from dim_pipelines.dispatch.warming import warm_nodes
from dim_pipelines.domain.node import NodeDescription
from dim_pipelines.errors import ConfigurationError, NodeUnreachable, NoFeasibleNode
from dim_pipelines.scheduling.attendance import Presence
from dim_pipelines.settings import Home
from dim_pipelines.testing.scripted_node import Faults, ScriptedNode

from .conftest import Make, until
from .networked import Network


@pytest.fixture
async def network(tmp_path: Path) -> AsyncIterator[Network]:
    network = Network(tmp_path)
    yield network
    await network.close()


async def test_a_batch_finds_its_nodes_by_their_records(make: Make, network: Network) -> None:
    bench = await make(rows=60, shard_rows=2)
    quiet = await bench.node("quiet")
    expected = (await bench.run(quiet)).result
    bench.head.rows["b1"].head = None
    a, b = ScriptedNode("a", credit=4), ScriptedNode("b", credit=4)
    bench.together(a, b)
    first, second = await network.node("a", a), await network.node("b", b)
    network.publish(first)
    pool = network.pool()
    running = asyncio.create_task(bench.run(pool=pool))
    await until(lambda: a.opened)
    network.publish(second)  # it appears in mid-batch
    finished = await running
    await bench.check(finished)
    assert finished.result == expected
    assert set(finished.nodes) == {"a", "b"}
    kept = network.reputations.of_node(first.name)
    assert kept["echo/1/FP32"].good > 0
    (told,) = network.table.refusals(first.name)
    assert (told.batch, told.chosen, told.reasons) == ("b1", True, ())


async def test_an_attached_node_computes_through_its_orchestrator(make: Make, network: Network) -> None:
    bench = await make(rows=60, shard_rows=2)
    node = await network.node("inside", ScriptedNode("inside", credit=4))
    await network.attach(node)
    network.publish(node, reach="attached")
    finished = await bench.run(pool=network.pool())
    await bench.check(finished)
    assert finished.nodes == {"inside": 30}


async def test_a_node_that_is_revoked_in_mid_batch_is_cut(make: Make, network: Network) -> None:
    bench = await make(rows=60, shard_rows=2)
    bad, good = ScriptedNode("bad", Faults(delay_s=600.0), credit=4), ScriptedNode("good", credit=4)
    good.faults.gate = bad.left
    first, second = await network.node("bad", bad), await network.node("good", good)
    network.publish(first)
    network.publish(second)
    running = asyncio.create_task(bench.run(pool=network.pool()))
    await until(lambda: bad.opened and good.opened)
    network.made.revoke(first.name, "it lied")
    finished = await running
    await bench.check(finished)
    assert finished.nodes == {"good": 30}
    explained = {each.name: each for each in finished.considered}
    assert explained["bad"].reasons == ("revoked: it lied",)


async def test_a_lost_node_is_reported_and_gets_no_new_session(make: Make, network: Network) -> None:
    bench = await make(rows=60, shard_rows=2)
    dies, lives = ScriptedNode("dies", Faults(delay_s=600.0), credit=4), ScriptedNode("lives", credit=4)
    lives.faults.gate = asyncio.Event()
    first, second = await network.node("dies", dies), await network.node("lives", lives)
    network.publish(first)
    network.publish(second)
    running = asyncio.create_task(bench.run(pool=network.pool()))
    await until(lambda: dies.opened and lives.opened)
    await first.server.stop(0)

    def is_suspect() -> bool:
        row = network.table.row(first.name)
        return row is not None and row.state == "SUSPECT"

    await until(is_suspect)
    row = network.table.row(first.name)
    assert row is not None and row.reason.startswith("a run worker lost it")
    lives.faults.gate.set()
    finished = await running
    await bench.check(finished)
    assert finished.nodes == {"lives": 30}


async def test_another_server_at_a_nodes_endpoint_gets_nothing(make: Make, network: Network) -> None:
    bench = await make(rows=20, shard_rows=2)
    spy = await network.node("spy", ScriptedNode("spy"))
    honest = await network.node("honest", ScriptedNode("honest", credit=4))
    network.publish(honest, endpoints=(spy.server.secure_address,))
    pool = network.pool()
    pool.patience_s = 1.0  # type: ignore[misc]
    with pytest.raises(NoFeasibleNode, match="honest: "):
        await bench.run(pool=pool)
    assert spy.scripted.opened == 0
    network.publish(honest)  # its next record tells the truth: the same pool goes there
    pool.patience_s = 60.0  # type: ignore[misc]
    await bench.check(await bench.run(pool=pool))


async def test_the_endpoint_that_answers_is_taken(make: Make, network: Network) -> None:
    bench = await make(rows=20, shard_rows=2)
    node = await network.node("a", ScriptedNode("a"))
    network.publish(node, endpoints=("127.0.0.1:9", "127.0.0.1:10", node.server.secure_address))
    pool = network.pool()
    await bench.check(await bench.run(pool=pool))
    network.publish(node, endpoints=("127.0.0.1:9", "127.0.0.1:10"))
    with pytest.raises(NodeUnreachable, match=r"none of its endpoints takes a connection \(127.0.0.1:9"):
        await pool.connect(node.name)
    with pytest.raises(NodeUnreachable, match="no record"):
        await pool.connect(network.host.name)


async def test_every_node_is_explained(make: Make, network: Network) -> None:
    bench = await make(rows=20, shard_rows=2)
    kinds = {
        "good": {},
        "paused": {"paused": True},
        "private": {"owners": ("somebody",)},
        "mine": {"owners": ("operator",)},
        "strict": {"licences": ("MIT",)},
        "unheard": {"healthy": False},
    }
    nodes = {}
    for label, said in kinds.items():
        nodes[label] = await network.node(label, ScriptedNode(label))
        network.publish(nodes[label], **said)  # type: ignore[arg-type]
    await network.node("silent", ScriptedNode("silent"))  # it has published nothing: nobody knows of it
    pool = network.pool()
    explained = await explain(pool, bench.batch.spec, bench.models)
    reasons = {each.name: each.reasons for each in explained}
    assert reasons.keys() == kinds.keys()
    assert reasons["good"] == reasons["mine"] == ()
    assert {each.name for each in explained[:2]} == {"good", "mine"} and explained[0].score is not None
    assert reasons["paused"] == ("it is paused by its owner, or outside its hours",)
    assert reasons["private"] == ("it takes batches of somebody only, this one is of operator",)
    assert reasons["strict"] == ("it runs no model under Apache-2.0 (it takes MIT)",)
    assert reasons["unheard"] == ("its record is good; it has not answered yet",)
    assert {each.state for each in explained} == {"ELIGIBLE", "VERIFIED"}
    described = await pool.describe()
    assert isinstance(described["good"], NodeDescription)
    assert isinstance(described["unheard"], NodeUnreachable)


async def test_what_was_last_known_is_used_while_the_table_cannot_be_read(
    make: Make, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = await make(rows=20, shard_rows=2)
    node = await network.node("a", ScriptedNode("a"))
    network.publish(node)
    pool = network.pool()
    assert len(await pool.look()) == 1

    def fail(*arguments: object) -> object:
        raise ConfigurationError("the database is locked")

    for name in ("changed_since", "row"):
        monkeypatch.setattr(network.table, name, fail)
    (seen,) = await pool.look()
    assert seen.presence is Presence.READY
    monkeypatch.setattr(network.table, "keep_refusals", fail)
    monkeypatch.setattr(network.reputations, "get", fail)
    monkeypatch.setattr(network.reputations, "add", fail)
    await bench.check(await bench.run(pool=pool))
    fresh = network.pool()
    with pytest.raises(ConfigurationError, match="the table of nodes cannot be read"):
        await fresh.look()


async def test_a_home_uses_its_network_where_it_may_run_batches(network: Network, tmp_path: Path) -> None:
    here = await open_pool(network.host.home)
    assert isinstance(here, DiscoveredNodes) and here.network == network.made.id
    await here.close()
    node = await network.node("a", ScriptedNode("a"))
    only_node = await open_pool(node.membership.home)
    assert type(only_node).__name__ == "NodePool" and only_node.network == "local"
    with pytest.raises(ConfigurationError, match="for no network"):
        await open_pool(Home.at(tmp_path / "none"), ["network"])
    named = await open_pool(network.host.home, ["127.0.0.1:1"])
    assert named.addresses == ("127.0.0.1:1",)
    await named.close()


async def test_models_are_brought_to_discovered_nodes(make: Make, network: Network) -> None:
    bench = await make(rows=4)
    first, second = await network.node("a", ScriptedNode("a")), await network.node("b", ScriptedNode("b"))
    network.publish(first)
    network.publish(second, healthy=False)
    answers = await warm_nodes(network.pool(), bench.models[0], bench.store, 2)
    assert set(answers) == {"a", "b"}
    assert "has not answered yet" in str(answers["b"])
