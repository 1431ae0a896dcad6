"""Batches over nodes that misbehave: every row exactly once, the same CID, clear ends."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable

import pytest

from dim_pipelines.content.manifest import read_dataset, read_result, shards
from dim_pipelines.content.memory import MemoryContentStore
from dim_pipelines.content.store import Block, Pin
from dim_pipelines.dispatch.node_pool import NodePool
from dim_pipelines.domain.cid import Cid
from dim_pipelines.domain.node import NodeDescription
from dim_pipelines.domain.work import Provenance
from dim_pipelines.errors import (
    ContentNotFound,
    ContentUnavailable,
    EngineFailed,
    InputError,
    NodeUnreachable,
    NoFeasibleNode,
    StaleEpoch,
)
from dim_pipelines.testing.scripted_node import Faults

from .conftest import Make, until


async def test_one_node_computes_a_batch(make: Make) -> None:
    bench = await make(rows=101, shard_rows=2)
    node = await bench.node("a")
    finished = await bench.run()
    await bench.check(finished)
    assert (finished.rows, finished.shards, finished.resumed_shards, finished.dead_rows) == (101, 51, 0, 0)
    assert finished.nodes == {"a": 51}
    assert finished.licences == ("Apache-2.0",)
    assert node.largest_message >= 16
    row = bench.head.rows["b1"]
    assert (row.result, row.provenance) == (finished.result, finished.provenance)
    assert bench.progress[-1].shards_done == bench.progress[-1].shards == 51
    provenance = Provenance.decode(await bench.store.get(finished.provenance))
    assert (provenance.result, provenance.source, provenance.journal) == (finished.result, "rows.csv", row.head)
    result = await read_result(bench.store, finished.result)
    assert [column.name for column in result.columns] == ["row", "answer"] or result.columns[1].name == "answer"
    pins = await bench.store.pins()
    assert {cid for cid, pin in pins if pin.label == "result/b1"} == {finished.result, finished.provenance}
    assert row.head in {cid for cid, pin in pins if pin.label == "batch/b1" and pin.expires_ms is not None}


async def test_the_result_depends_on_nothing_that_happens(make: Make) -> None:
    bench = await make(rows=120, shard_rows=2)
    a = await bench.node("a", credit=4)
    first = await bench.run()
    a.faults.delay_s = 0.01
    b = await bench.node("b", Faults(delay_s=0.005), credit=4)
    c = await bench.node(
        "c",
        Faults(delay_s=0.005, fail_once={3: "engine_failed", 7: "internal"}, hand_back=frozenset({11, 12})),
        credit=4,
    )
    bench.together(a, b, c)
    bench.head.rows["b1"].head = None
    again = await bench.run()
    assert again.result == first.result
    assert again.resumed_shards == 0
    assert len(again.nodes) == 3
    await bench.check(again)


async def test_a_finished_batch_is_not_computed_again(make: Make) -> None:
    bench = await make()
    node = await bench.node("a")
    first = await bench.run()
    await node.kill()
    second = await bench.run()
    assert (second.result, second.resumed_shards) == (first.result, 50)
    assert len(node.computed) == 50


async def test_large_shards_travel_as_trees(make: Make) -> None:
    bench = await make(rows=12, shard_rows=4, text="long" * 100_000)
    await bench.node("a")
    await bench.node("b")
    finished = await bench.run()
    await bench.check(finished)
    assert finished.shards == 3


async def test_large_outputs_travel_as_trees_and_are_checked(make: Make) -> None:
    bench = await make(rows=32, shard_rows=4)
    liar = Faults(delay_s=0.01, padding=100_000, wrong_bytes=frozenset(range(8)))
    false = await bench.node("liar", liar, credit=2)
    good = await bench.node("good", Faults(delay_s=0.02, padding=100_000, gate=false.left), credit=2)
    finished = await bench.run()
    await bench.check(finished)
    assert finished.nodes == {"good": 8}
    bench.head.rows["b1"].head = None
    assert (await bench.run(good)).result == finished.result


async def test_large_outputs_over_a_common_swarm(make: Make) -> None:
    class SwarmStore(MemoryContentStore):
        @property
        def swarm(self) -> str:
            return "one"

    store = SwarmStore()
    bench = await make(rows=32, shard_rows=4, store=store)
    await bench.node("a", Faults(padding=100_000), store=store)
    await bench.check(await bench.run())


async def test_a_row_of_other_columns_is_a_wrong_output(make: Make) -> None:
    bench = await make(rows=60, shard_rows=2)
    await bench.node("a", Faults(delay_s=0.02), credit=4)
    other = await bench.node("b", Faults(delay_s=0.04, padding=5), credit=2)
    finished = await bench.run()
    await bench.check(finished)
    assert finished.nodes == {"a": 30} or finished.nodes == {"b": 30}
    assert other.computed


async def test_a_model_that_the_own_store_lacks_ends_the_batch(make: Make) -> None:
    bench = await make(rows=4)
    await bench.node("a")
    assert isinstance(bench.store, MemoryContentStore)
    del bench.store._blocks[bench.models[0].cid]
    with pytest.raises(ContentNotFound, match=str(bench.models[0].cid)):
        await bench.run()


async def test_nodes_of_one_name_are_told_apart(make: Make) -> None:
    bench = await make(rows=4)
    first, second = await bench.node("a"), await bench.node("a")
    pool = NodePool([first.address, second.address, first.address])
    try:
        described = await pool.describe()
        assert pool.addresses == (first.address, second.address)
        assert isinstance(described["a"], NodeDescription)
        assert "called a, like" in str(described[second.address])
        with pytest.raises(NodeUnreachable, match="no node b"):
            await pool.connect("b")
    finally:
        await pool.close()
    await bench.check(await bench.run())


async def test_a_node_that_comes_back_under_another_name_is_still_itself(make: Make) -> None:
    bench = await make(rows=60, shard_rows=2)
    node = await bench.node("a", Faults(drop_after=5), credit=2)
    running = asyncio.create_task(bench.run())
    await bench.reached(1)
    node.name = "z"
    finished = await running
    await bench.check(finished)
    assert finished.nodes == {"a": 30}
    assert node.opened == 2


async def test_another_node_at_a_nodes_address_is_left_alone(make: Make) -> None:
    bench = await make(rows=60, shard_rows=2)
    node = await bench.node("a", Faults(delay_s=0.02, drop_after=5), credit=2)
    await bench.node("b", Faults(gate=node.left), credit=2)
    running = asyncio.create_task(bench.run())
    await bench.reached(1)
    node.key = bytes(32)
    finished = await running
    await bench.check(finished)
    assert finished.nodes["a"] <= 5


async def test_what_a_node_holds_is_not_sent_again_and_is_computed_first(make: Make) -> None:
    class CountingStore(MemoryContentStore):
        def __init__(self) -> None:
            super().__init__()
            self.given: list[Cid] = []

        async def put(self, blocks: Iterable[Block], *, pin: Pin | None = None) -> None:
            given = list(blocks)
            self.given += [block.cid for block in given]
            await super().put(given, pin=pin)

    bench = await make(rows=40, shard_rows=2)
    dataset = await read_dataset(bench.store, bench.ingested.dataset)
    inputs = [cid async for _, cid, _ in shards(bench.store, dataset)]
    held = range(10, 15)
    store = CountingStore()
    await store.put([Block(inputs[shard], await bench.store.get(inputs[shard])) for shard in held])
    store.given.clear()
    tasks: list[int] = []
    await bench.node("a", store=store, credit=4, on_task=lambda task: tasks.append(task.shard))
    await bench.check(await bench.run())
    assert sorted(tasks[:5]) == list(held)
    assert {cid for cid in store.given if cid in inputs} == {*inputs} - {inputs[shard] for shard in held}
    store.given.clear()
    bench.head.rows["b1"].head = None
    await bench.run()
    assert not {*store.given} & {*inputs}


async def test_a_common_swarm_copies_nothing(make: Make) -> None:
    class SwarmStore(MemoryContentStore):
        @property
        def swarm(self) -> str:
            return "one"

    store = SwarmStore()
    bench = await make(rows=40, shard_rows=2, store=store)
    node = await bench.node("a", store=store)
    finished = await bench.run()
    await bench.check(finished)
    assert len(node.computed) == 20


async def test_a_node_killed_in_mid_batch_loses_no_row(make: Make) -> None:
    bench = await make(rows=120, shard_rows=2)
    started = asyncio.Event()
    dying = await bench.node("a", Faults(delay_s=600.0), credit=4, on_task=lambda task: started.set())
    await bench.node("b", Faults(delay_s=0.02, gate=dying.left), credit=4)
    running = asyncio.create_task(bench.run())
    await started.wait()
    await dying.kill()
    finished = await running
    await bench.check(finished)
    assert finished.retries > 0
    assert sum(finished.nodes.values()) == 60


async def test_a_cut_stream_is_opened_again(make: Make) -> None:
    bench = await make(rows=40, shard_rows=2)
    node = await bench.node("a", Faults(drop_after=5), credit=4)
    finished = await bench.run()
    await bench.check(finished)
    assert node.opened == 2


async def test_a_second_answer_breaks_the_session_not_the_batch(make: Make) -> None:
    bench = await make(rows=40, shard_rows=2)
    await bench.node("liar", Faults(duplicate=True), credit=4)
    await bench.node("good", Faults(delay_s=0.01), credit=4)
    finished = await bench.run()
    await bench.check(finished)


@pytest.mark.parametrize("kind", ["wrong_bytes", "wrong_rows", "garbage"])
async def test_wrong_outputs_are_the_nodes_failure_and_computed_elsewhere(make: Make, kind: str) -> None:
    bench = await make(rows=60, shard_rows=2)
    faults = Faults(delay_s=0.002)
    setattr(faults, kind, frozenset(range(30)))
    liar = await bench.node("liar", faults, credit=4)
    await bench.node("good", Faults(delay_s=0.01, gate=liar.left), credit=4)
    finished = await bench.run()
    await bench.check(finished)
    assert finished.nodes == {"good": 30}
    assert finished.retries >= 3


async def test_only_liars_left_is_a_clear_end(make: Make) -> None:
    bench = await make(rows=20, shard_rows=2)
    await bench.node("liar", Faults(garbage=frozenset(range(10))), credit=2)
    with pytest.raises(NoFeasibleNode, match=r"liar: .*wrong"):
        await bench.run()
    assert bench.head.rows["b1"].result is None


async def test_no_node_at_all_is_a_clear_end(make: Make) -> None:
    bench = await make(rows=4)
    node = await bench.node("a")
    await node.kill()
    with pytest.raises(NoFeasibleNode) as caught:
        async with asyncio.timeout(60):
            await bench.run()
    assert list(caught.value.reasons) == [node.address]


async def test_the_last_node_dying_is_a_clear_end_and_the_batch_goes_on_later(make: Make) -> None:
    bench = await make(rows=400, shard_rows=2)
    seen: Counter[int] = Counter()
    enough = asyncio.Event()

    def note(task: object) -> None:
        seen["tasks"] += 1
        if seen["tasks"] > 60:
            enough.set()

    dying = await bench.node("a", Faults(delay_s=0.01), credit=4, on_task=note)
    running = asyncio.create_task(bench.run())
    await enough.wait()
    await dying.kill()
    with pytest.raises(NoFeasibleNode, match="a:"):
        async with asyncio.timeout(60):
            await running
    other = await bench.node("b")
    finished = await bench.run(other)
    await bench.check(finished)
    assert finished.resumed_shards > 20
    assert len(other.computed) == 200 - finished.resumed_shards


async def test_refusals_name_each_node(make: Make) -> None:
    bench = await make(rows=4)
    await bench.node("a", Faults(refuse=("forbidden", "this node does not trust you")))
    await bench.node("b", numerics="echo/2")
    bench.head.rows["b1"].numerics = "echo/1/FP32"
    with pytest.raises(NoFeasibleNode) as caught:
        await bench.run()
    assert caught.value.reasons["a"] == "this node does not trust you"
    assert "echo/2/FP32" in caught.value.reasons["b"]


async def test_a_shard_that_fails_everywhere_ends_the_batch(make: Make) -> None:
    bench = await make(rows=40, shard_rows=2)
    await bench.node("a", Faults(fail={5: "engine_failed"}))
    await bench.node("b", Faults(fail={5: "engine_failed"}))
    with pytest.raises(EngineFailed, match="shard 5 failed 4 times"):
        await bench.run()


async def test_a_bad_row_is_named_once_a_second_node_agrees(make: Make) -> None:
    bench = await make(rows=40, shard_rows=2)
    await bench.node("a", Faults(bad_rows={5: 1}))
    await bench.node("b", Faults(bad_rows={5: 1}))
    with pytest.raises(InputError, match="row 11: it is bad") as caught:
        await bench.run()
    assert "dead_letter" in caught.value.hint


async def test_a_bad_row_on_one_node_only_is_that_nodes_problem(make: Make) -> None:
    bench = await make(rows=40, shard_rows=2)
    await bench.node("a", Faults(bad_rows={5: 1}), credit=4)
    await bench.node("b", Faults(delay_s=0.002), credit=4)
    await bench.check(await bench.run())


async def test_a_straggler_gets_a_second_copy_and_is_cancelled(make: Make) -> None:
    bench = await make(rows=60, shard_rows=2)
    slow = await bench.node("slow", Faults(delay_s=0.01, slow=frozenset(range(30)), slow_s=600.0), credit=1)
    fast = await bench.node("fast", Faults(delay_s=0.01), credit=4)
    bench.together(slow, fast)
    finished = await bench.run()
    await bench.check(finished)
    assert finished.nodes == {"fast": 30}
    assert slow.cancelled


async def test_a_silent_node_loses_its_tasks(make: Make) -> None:
    bench = await make(rows=40, shard_rows=2)
    await bench.node("mute", Faults(silent_after=3), credit=4)
    await bench.node("good", Faults(delay_s=0.01), credit=2)
    async with asyncio.timeout(60):
        finished = await bench.run()
    await bench.check(finished)


async def test_cancelling_stops_the_nodes_and_keeps_what_is_done(make: Make) -> None:
    bench = await make(rows=400, shard_rows=2)
    node = await bench.node("a", Faults(slow=frozenset(range(40, 200)), slow_s=600.0), credit=8)
    running = asyncio.create_task(bench.run())
    await bench.reached(20)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await until(lambda: node.sessions == 0)
    assert len(node.computed) < 200
    assert bench.head.rows["b1"].result is None
    node.faults = Faults()
    finished = await bench.run()
    await bench.check(finished)
    assert finished.resumed_shards >= 20


async def test_a_newer_run_ends_the_older_one_at_once(make: Make) -> None:
    bench = await make(rows=400, shard_rows=2)
    await bench.node("a", Faults(slow=frozenset(range(40, 200)), slow_s=600.0), credit=4)
    older = asyncio.create_task(bench.run())
    await bench.reached(10)
    bench.head.take_epoch("b1", "another run")
    with pytest.raises(StaleEpoch):
        async with asyncio.timeout(60):  # its tasks take ten minutes: it does not end with them
            await older
    assert bench.head.rows["b1"].result is None


async def test_two_dispatchers_of_one_batch_end_with_one_result(make: Make) -> None:
    bench = await make(rows=200, shard_rows=2)
    await bench.node("a", Faults(delay_s=0.02), credit=4)
    older = asyncio.create_task(bench.run())
    await bench.reached(10)
    finished = await bench.run()
    with pytest.raises(StaleEpoch):
        await older
    await bench.check(finished)
    assert bench.head.rows["b1"].result == finished.result


async def test_lost_outputs_are_computed_again(make: Make) -> None:
    bench = await make(rows=40, shard_rows=2)
    node = await bench.node("a")
    first = await bench.run()
    root = await read_result(bench.store, first.result)
    assert root.shards == 20
    assert isinstance(bench.store, MemoryContentStore)
    gone = [cid async for index, cid, _ in shards(bench.store, root) if index in (3, 4)]
    for cid in gone:
        del bench.store._blocks[cid]
    second = await bench.run()
    assert (second.result, second.resumed_shards) == (first.result, 18)
    assert Counter(node.computed)[3] == 2


async def test_a_full_disk_ends_the_batch_with_its_own_error(make: Make) -> None:
    class FullStore(MemoryContentStore):
        full = False

        async def put(self, blocks: object, *, pin: object = None) -> None:
            if self.full:
                raise ContentUnavailable("no space left on device")
            await super().put(blocks, pin=pin)  # type: ignore[arg-type]

    store = FullStore()
    bench = await make(rows=400, shard_rows=2, store=store)
    await bench.node("a", Faults(delay_s=0.02), credit=4)
    running = asyncio.create_task(bench.run())
    await bench.reached(10)
    store.full = True
    with pytest.raises(ContentUnavailable, match="no space"):
        await running


async def test_another_input_starts_a_new_journal(make: Make) -> None:
    bench = await make(rows=40, shard_rows=2)
    node = await bench.node("a")
    first = await bench.run()
    other = await make(rows=42, shard_rows=2, store=bench.store)
    other.head = bench.head
    finished = await other.run(node)
    await other.check(finished)
    assert (finished.resumed_shards, finished.shards) == (0, 21)
    assert finished.result != first.result


async def test_the_only_node_falling_silent_is_a_clear_end(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dim_pipelines.dispatch.dispatcher.LOST_S", 1.5)
    monkeypatch.setattr("dim_pipelines.dispatch.dispatcher.PATIENCE_S", 1.0)
    bench = await make(rows=40, shard_rows=2)
    await bench.node("mute", Faults(silent_after=3), credit=4)
    with pytest.raises(NoFeasibleNode, match="mute: it has been silent for"):
        await bench.run()


async def test_numerics_any_takes_every_class(make: Make) -> None:
    bench = await make(rows=40, shard_rows=2, numerics="any")
    a = await bench.node("a", Faults(delay_s=0.01), credit=2, numerics="echo/1")
    b = await bench.node("b", Faults(delay_s=0.01), credit=2, numerics="echo/2")
    bench.together(a, b)
    finished = await bench.run()
    await bench.check(finished)
    assert set(finished.nodes) == {"a", "b"}


async def test_a_batch_keeps_to_the_class_of_most_nodes(make: Make) -> None:
    bench = await make(rows=40, shard_rows=2)
    await bench.node("a", Faults(delay_s=0.01), credit=2, numerics="echo/1")
    b = await bench.node("b", Faults(delay_s=0.01), credit=2, numerics="echo/2")
    c = await bench.node("c", Faults(delay_s=0.01), credit=2, numerics="echo/2")
    bench.together(b, c)
    finished = await bench.run()
    await bench.check(finished)
    assert set(finished.nodes) == {"b", "c"}
    assert bench.head.rows["b1"].numerics == "echo/2/FP32"
