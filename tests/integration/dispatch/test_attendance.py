"""Nodes that come and go in mid-batch: every row exactly once, and the same CID as without them."""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from dim_pipelines.dispatch.node_pool import NodePool, identity_of
from dim_pipelines.domain.ipns import ipns_name
from dim_pipelines.errors import NoFeasibleNode
from dim_pipelines.scheduling.attendance import Presence, Standing
from dim_pipelines.scheduling.reputation import Reputation
from dim_pipelines.testing.pools import ScriptedPool
from dim_pipelines.testing.scripted_node import Faults, ScriptedNode

from .conftest import Bench, Make, until

LEAVING = Standing(Presence.LEAVING, "its owner has paused it")
GONE = Standing(Presence.GONE, "revoked: it lied")
DOUBTFUL = Standing(Presence.DOUBTFUL, "it does not answer")


def pool_of(*nodes: ScriptedNode, **options: object) -> ScriptedPool:
    return ScriptedPool([node.address for node in nodes], **options)  # type: ignore[arg-type]


async def baseline(bench: Bench) -> str:
    """Compute the batch on one quiet node, and forget that."""
    node = await bench.node("quiet")
    finished = await bench.run(node)
    bench.head.rows["b1"].head = None
    return str(finished.result)


async def test_a_node_that_appears_joins(make: Make) -> None:
    bench = await make(rows=80, shard_rows=2)
    expected = await baseline(bench)
    a, b = await bench.node("a", credit=4), await bench.node("b", credit=4)
    bench.together(a, b)  # a finishes nothing before b has got a task
    pool = pool_of(a, b)
    pool.hidden = {b.address}
    running = asyncio.create_task(bench.run(pool=pool))
    await until(lambda: a.opened)
    pool.hidden = set()
    finished = await running
    await bench.check(finished)
    assert set(finished.nodes) == {"a", "b"}
    assert str(finished.result) == expected


async def test_a_node_that_leaves_ends_what_it_has_begun_and_gets_no_more(make: Make) -> None:
    bench = await make(rows=80, shard_rows=2)
    expected = await baseline(bench)
    a, b = await bench.node("a", credit=2), await bench.node("b", credit=4)
    tasks: list[int] = []
    a.on_task = lambda task: tasks.append(task.shard)
    a.faults.gate, b.faults.gate = asyncio.Event(), a.left
    pool = pool_of(a, b)
    running = asyncio.create_task(bench.run(pool=pool))
    await until(lambda: len(tasks) == 2)
    pool.standings[a.address] = LEAVING
    looks = pool.looks
    await until(lambda: pool.looks > looks + 2)  # the one before it was acted upon
    a.faults.gate.set()
    finished = await running
    await bench.check(finished)
    assert finished.nodes == {"a": 2, "b": 38}
    assert (len(tasks), a.cancelled, a.opened, finished.retries) == (2, [], 1, 0)
    assert str(finished.result) == expected


async def test_a_node_that_is_out_is_cut_and_its_tasks_go_elsewhere(make: Make) -> None:
    bench = await make(rows=80, shard_rows=2)
    expected = await baseline(bench)
    tasks: list[int] = []
    a = await bench.node("a", Faults(delay_s=600.0), credit=2, on_task=lambda task: tasks.append(task.shard))
    b = await bench.node("b", Faults(gate=a.left), credit=4)
    pool = pool_of(a, b)
    running = asyncio.create_task(bench.run(pool=pool))
    await until(lambda: tasks)
    pool.standings[a.address] = GONE
    finished = await running
    await bench.check(finished)
    assert finished.nodes == {"b": 40}
    assert finished.retries == 0  # what is cut by our own wish costs no attempt
    assert not pool.losses  # it was not lost: it was let go
    assert str(finished.result) == expected
    explained = {each.name: each for each in finished.considered}
    assert explained["a"].reasons == ("revoked: it lied",) and not explained["a"].chosen
    assert explained["b"].feasible and explained["b"].chosen
    await until(lambda: a.sessions == 0)


async def test_a_node_that_comes_back_is_used_again(make: Make) -> None:
    bench = await make(rows=80, shard_rows=2)
    a = await bench.node("a", credit=2)
    b = await bench.node("b", Faults(gate=asyncio.Event()), credit=2)
    pool = pool_of(a, b)
    pool.standings[a.address] = LEAVING
    running = asyncio.create_task(bench.run(pool=pool))
    await until(lambda: b.opened)
    assert not a.opened
    pool.standings.clear()
    await until(lambda: a.opened)
    pool.standings[a.address] = LEAVING
    await a.left.wait()
    pool.standings.clear()
    await until(lambda: a.opened == 2)
    assert b.faults.gate is not None
    b.faults.gate.set()
    await bench.check(await running)


async def test_a_node_that_others_doubt_works_on_while_it_is_heard_but_no_new_session_is_opened(make: Make) -> None:
    bench = await make(rows=40, shard_rows=2)
    a, b = await bench.node("a", Faults(gate=asyncio.Event()), credit=2), await bench.node("b", credit=2)
    pool = pool_of(a, b)
    pool.standings[b.address] = DOUBTFUL
    running = asyncio.create_task(bench.run(pool=pool))
    await until(lambda: a.opened)
    pool.standings[a.address] = DOUBTFUL
    looks = pool.looks
    await until(lambda: pool.looks > looks + 3)
    assert a.faults.gate is not None
    a.faults.gate.set()
    finished = await running
    await bench.check(finished)
    assert finished.nodes == {"a": 20}
    assert (a.opened, b.opened) == (1, 0)


async def test_a_node_that_is_elsewhere_now_gets_a_new_session_there(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dim_pipelines.dispatch.dispatcher.LOST_S", 600.0)  # silence alone would end it, later
    bench = await make(rows=40, shard_rows=2)
    key, tasks = bytes(range(32)), []
    there = await bench.node("a", Faults(silent_after=0), credit=2, key=key, on_task=tasks.append)
    here = await bench.node("a", credit=2, key=key)
    pool = pool_of(there, here)
    pool.hidden = {here.address}
    running = asyncio.create_task(bench.run(pool=pool))
    await until(lambda: tasks)
    pool.places[here.address] = "here"
    pool.hidden = {there.address}
    finished = await running
    await bench.check(finished)
    assert finished.nodes == {"a": 20}
    assert (there.opened, sorted(set(here.computed))) == (1, list(range(20)))


async def test_a_session_that_is_heard_is_kept_though_the_record_is_newer(make: Make) -> None:
    bench = await make(rows=40, shard_rows=2)
    a = await bench.node("a", Faults(gate=asyncio.Event()), credit=2)
    pool = pool_of(a)
    running = asyncio.create_task(bench.run(pool=pool))
    await until(lambda: a.opened)
    pool.places[a.address] = "said to be elsewhere"
    looks = pool.looks
    await until(lambda: pool.looks > looks + 3)
    assert a.faults.gate is not None
    a.faults.gate.set()
    await bench.check(await running)
    assert a.opened == 1 and not pool.losses


async def test_a_node_that_is_down_at_first_joins_when_it_is_up(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NodePool, "interval_s", 0.05)
    bench = await make(rows=80, shard_rows=2)
    late = await bench.node("late", credit=4)
    address = late.address
    await late.kill()
    here = await bench.node("here", credit=4)
    bench.together(here, late)
    running = asyncio.create_task(bench.run(late, here))
    await until(lambda: here.opened)
    await late.start(address)
    finished = await running
    await bench.check(finished)
    assert set(finished.nodes) == {"here", "late"}


async def test_a_batch_waits_for_its_first_node(make: Make) -> None:
    bench = await make(rows=10, shard_rows=2)
    a = await bench.node("a")
    pool = pool_of(a, grows=True, patience_s=60.0)
    pool.hidden = {a.address}
    running = asyncio.create_task(bench.run(pool=pool))
    await until(lambda: bench.progress)
    assert bench.progress[-1].waits == "waits for a node: none is known"
    pool.standings[a.address] = DOUBTFUL
    pool.hidden = set()
    await until(lambda: "waits for a node: a: " in bench.progress[-1].waits)
    del pool.standings[a.address]
    await bench.check(await running)
    assert bench.progress[-1].waits == ""


async def test_a_batch_whose_last_node_left_waits_for_another_then_says_who_is_missing(make: Make) -> None:
    bench = await make(rows=40, shard_rows=2)
    a = await bench.node("a", Faults(delay_s=600.0), credit=2)
    b = await bench.node("b")
    pool = pool_of(a, b, grows=True, patience_s=60.0)
    pool.hidden = {b.address}
    running = asyncio.create_task(bench.run(pool=pool))
    await until(lambda: a.opened)
    pool.standings[a.address] = GONE
    await a.left.wait()
    await until(lambda: bench.progress[-1].waits.startswith("waits for a node: a: "))
    pool.hidden = set()
    await bench.check(await running)
    assert bench.progress[-1].waits == ""
    bench.head.rows["b1"].head = None
    short = pool_of(a, b, grows=True, patience_s=0.5)
    short.standings[b.address] = LEAVING
    again = asyncio.create_task(bench.run(pool=short))
    await until(lambda: a.opened == 2)
    short.standings[a.address] = GONE
    with pytest.raises(NoFeasibleNode) as caught:
        await again
    assert caught.value.reasons == {"a": "revoked: it lied", "b": "its owner has paused it"}


async def test_a_small_batch_opens_the_best_nodes_only_and_others_when_they_go(make: Make) -> None:
    bench = await make(rows=8, shard_rows=2)
    gate = asyncio.Event()
    nodes = [await bench.node(f"n{number}", Faults(gate=gate), credit=1) for number in range(6)]
    pool = pool_of(*nodes)
    pool.known = {ipns_name(node.key): Reputation(good=50.0, at_ms=1) for node in nodes[1:5]}
    for id in pool.known:
        pool.known[id] = Reputation(good=50.0, at_ms=2**60)  # earned just now: it has not faded
    running = asyncio.create_task(bench.run(pool=pool))
    await until(lambda: all(node.opened for node in nodes[1:5]))
    looks = pool.looks
    await until(lambda: pool.looks > looks + 2)  # the one before it was acted upon
    assert not nodes[0].opened and not nodes[5].opened
    pool.standings[nodes[1].address] = GONE
    await until(lambda: nodes[0].opened + nodes[5].opened == 1)
    await nodes[2].kill()  # it may come back: its session is tried again, but another joins meanwhile
    await until(lambda: nodes[0].opened + nodes[5].opened == 2)
    gate.set()
    await bench.check(await running)


async def test_the_pool_hears_what_was_seen_of_nodes(make: Make) -> None:
    bench = await make(rows=60, shard_rows=2)
    drops = await bench.node("drops", Faults(drop_after=3), credit=2)
    fails = await bench.node(
        "fails", Faults(gate=drops.left, fail_once=dict.fromkeys(range(30), "engine_failed")), credit=2
    )
    pool = pool_of(drops, fails)
    finished = await bench.run(pool=pool)
    await bench.check(finished)
    ids = {"drops": ipns_name(drops.key), "fails": ipns_name(fails.key)}
    assert {id for id, _ in pool.losses} == {ids["drops"]}
    assert "a run worker lost it" in pool.losses[0][1]
    ((classes, seen),) = pool.kept
    assert classes == dict.fromkeys(ids.values(), "echo/1/FP32")
    assert seen[ids["drops"]].bad >= 1
    assert seen[ids["fails"]].bad >= 1 and seen[ids["fails"]].last == "it broke"
    assert sum(each.good for each in seen.values()) == 30 and sum(each.rows for each in seen.values()) == 60
    assert pool.refused[0].chosen == set(ids.values())


async def test_what_a_node_said_when_it_was_asked_is_kept(make: Make) -> None:
    bench = await make(rows=20, shard_rows=2)
    refuses = await bench.node("refuses", Faults(refuse=("forbidden", "this node does not trust you")))
    works = await bench.node("works", Faults(gate=refuses.left))
    pool = pool_of(refuses, works)
    finished = await bench.run(pool=pool)
    explained = {each.name: each for each in finished.considered}
    assert explained["refuses"].reasons == ("this node does not trust you",)
    assert not explained["refuses"].chosen and not explained["refuses"].feasible
    assert explained["works"].chosen
    told = {id: why for each in pool.refused for id, why in each.reasons.items()}
    assert told[ipns_name(refuses.key)] == ("this node does not trust you",)


async def test_a_pool_that_cannot_be_looked_at_changes_nothing(make: Make) -> None:
    bench = await make(rows=40, shard_rows=2)
    a = await bench.node("a", Faults(gate=asyncio.Event()), credit=2)
    pool = pool_of(a)
    look, broken = pool.look, 0

    async def fail(timeout: float = 5.0) -> object:
        nonlocal broken
        if a.opened:
            broken += 1
            raise NoFeasibleNode("the table is locked")
        return await look(timeout)

    pool.look = fail  # type: ignore[method-assign,assignment]
    running = asyncio.create_task(bench.run(pool=pool))
    await until(lambda: broken >= 3)
    assert a.faults.gate is not None
    a.faults.gate.set()
    await bench.check(await running)


async def test_names_are_told_apart_and_identities_last(make: Make) -> None:
    bench = await make(rows=4)
    a = await bench.node("a")
    pool = NodePool([a.address])
    try:
        (seen,) = await pool.look()
        assert seen.node is not None and seen.id == identity_of(seen.node) == ipns_name(a.key)
        await a.kill()
        (silent,) = await pool.look()
        assert (silent.id, silent.name, silent.presence) == (seen.id, "a", Presence.DOUBTFUL)
    finally:
        await pool.close()


@pytest.mark.parametrize("seed", range(4))
async def test_whatever_joins_leaves_and_drains_the_result_is_the_same(make: Make, seed: int) -> None:
    random = Random(seed)
    bench = await make(rows=240, shard_rows=2)
    expected = await baseline(bench)
    nodes = [await bench.node(f"n{number}", Faults(delay_s=0.01), credit=3) for number in range(4)]
    pool = pool_of(*nodes, grows=True, patience_s=60.0)
    pool.interval_s = 0.02  # type: ignore[misc]
    running = asyncio.create_task(bench.run(pool=pool))
    looks = 0
    while not running.done():
        if pool.looks > looks:  # one change for each look
            looks = pool.looks
            node = random.choice(nodes)
            pool.standings.pop(node.address, None)
            pool.hidden.discard(node.address)
            match random.randrange(5):
                case 0:
                    pool.standings[node.address] = LEAVING
                case 1:
                    pool.standings[node.address] = GONE
                case 2:
                    pool.hidden.add(node.address)
                case 3:
                    pool.places[node.address] = looks
                case _:
                    pass
        await asyncio.sleep(0.005)
        if looks > 40:
            pool.standings.clear()
            pool.hidden.clear()
    finished = await running
    await bench.check(finished)
    assert str(finished.result) == expected
    assert sum(finished.nodes.values()) == 120
