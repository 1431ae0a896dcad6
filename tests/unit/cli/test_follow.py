from __future__ import annotations

from pathlib import Path

import pytest

from dim_pipelines.cli.follow import BatchFailed, Journaled, await_table, follow, missing_nodes, record_of
from dim_pipelines.content.memory import MemoryContentStore
from dim_pipelines.content.store import Block
from dim_pipelines.database.engine import open_database
from dim_pipelines.discovery.node_table import NodeTable
from dim_pipelines.domain.batch import BatchSpec
from dim_pipelines.domain.cid import RAW, Cid
from dim_pipelines.domain.dataset import Dataset, Result
from dim_pipelines.domain.events import Segment
from dim_pipelines.domain.format import Format
from dim_pipelines.domain.work import Provenance, Work
from dim_pipelines.errors import Cancelled
from dim_pipelines.orchestrator.batches import Batches
from dim_pipelines.settings import Home
from dim_pipelines.testing.networks import MadeNetwork, now_ms

OUTPUT = Cid.of(RAW, b"output")
WORK = Cid.of(RAW, b"work")


async def put(store: MemoryContentStore, value: Format) -> Cid:
    data = value.encode()
    cid = Cid.of(0x71, data)
    await store.put([Block(cid, data)])
    return cid


def segment(number: int, previous: Cid | None, *outcomes: tuple[int, int, int]) -> Segment:
    return Segment(
        batch="b", owner="local", epoch=1, number=number, work=WORK, previous=previous, nodes=["a", "b"],
        outcomes=[(shard, OUTPUT, rows, node, rows, 1, 1, 1, 0) for shard, rows, node in outcomes],
    )  # fmt: skip


async def test_each_segment_is_read_once_and_a_shard_counts_once() -> None:
    store, journal = MemoryContentStore(), Journaled()
    first = await put(store, segment(0, None, (0, 4, 0), (1, 4, 1)))
    await journal.read(store, first)
    assert (journal.shards, journal.rows, journal.nodes) == (2, 8, {"a": 1, "b": 1})
    second = await put(store, segment(1, first, (2, 4, 0)))
    third = await put(store, segment(2, second, (2, 4, 1), (3, 2, 1)))
    await journal.read(store, third)
    assert (journal.shards, journal.rows) == (4, 14)
    await journal.read(store, third)
    assert journal.shards == 4


async def test_a_segment_that_is_not_there_yet_is_read_the_next_time() -> None:
    store, journal = MemoryContentStore(), Journaled()
    late = segment(0, None, (0, 4, 0))
    newest = await put(store, segment(1, Cid.of(0x71, late.encode()), (1, 4, 0)))
    await journal.read(store, newest)
    assert journal.shards == 0
    await put(store, late)
    await journal.read(store, newest)
    assert journal.shards == 2


@pytest.fixture
def batches(tmp_path: Path) -> Batches:
    return Batches(open_database(f"sqlite:///{tmp_path / 'dim.db'}"))


SPEC = BatchSpec.read({"name": "n", "models": ["m"], "input": "x.csv"})


async def test_following_ends_with_the_batch(batches: Batches) -> None:
    store = MemoryContentStore()
    row = batches.submit(SPEC, output="/o.parquet")
    dataset = await put(store, Dataset(columns=(), rows=8, shards=2, shard_rows=4, pages=()))
    work = await put(
        store,
        Work(models=(), pattern="collaborative", columns=(), batch_rows=4, numerics="any", dataset=dataset),
    )
    result = await put(store, Result(work=work, columns=(), rows=8, shards=2, pages=(), dead_rows=1))
    provenance = await put(
        store,
        Provenance(
            result=result,
            batch=row.id,
            owner="local",
            submission={},
            source="x.csv",
            licences=(),
            nodes={"a": 2},
            shards=2,
            resumed_shards=1,
            retries=0,
            seconds=2.0,
            finished_ms=0,
        ),
    )
    batches.keep_dataset(row.id, dataset, None)
    epoch = batches.take_epoch(row.id, "test").epoch
    batches.finish(row.id, epoch, result, provenance)
    done = await follow(row.id, batches, store, lambda done, total, note: None, "local")
    assert await record_of(done, store) == {
        "batch": row.id,
        "result_cid": str(result),
        "dataset_cid": str(dataset),
        "provenance_cid": str(provenance),
        "rows": 8,
        "dead_rows": 1,
        "shards": 2,
        "resumed_shards": 1,
        "rows_per_s": 2.0,
        "seconds": 2.0,
        "nodes": {"a": 2},
        "output": "/o.parquet",
    }


async def test_a_batch_that_no_node_takes_says_so(batches: Batches, tmp_path: Path) -> None:
    network = MadeNetwork(tmp_path / "network")
    home, member = network.orchestrator.home, network.join("ann", "node")
    assert missing_nodes(Home.at(tmp_path / "none"))() == ""  # it is in no network
    why = missing_nodes(home)
    assert why() == "waits for a node: none is known"
    NodeTable(open_database(home.database_url)).see(member.name, member.member, now_ms())
    assert why().startswith("waits for a node: ann-") and "no record of it" in why()
    row, said = batches.submit(SPEC), list[str]()

    def wait(text: str) -> None:
        said.append(text)
        batches.cancel(row.id, holder="a run")

    with pytest.raises(Cancelled):
        await follow(row.id, batches, MemoryContentStore(), lambda *shown: None, "local", why=why, wait=wait)
    assert said == [why()]


async def test_a_failed_batch_says_why_and_how_to_go_on(batches: Batches) -> None:
    row = batches.submit(SPEC)
    batches.fail(row.id, "row 7 is bad", holder="a run")
    with pytest.raises(BatchFailed, match="row 7 is bad") as caught:
        await follow(row.id, batches, MemoryContentStore(), lambda done, total, note: None, "local")
    assert caught.value.hint == f"dim resume {row.id} continues it"


async def test_a_table_that_failed_is_not_waited_for(batches: Batches) -> None:
    row = batches.submit(SPEC, output="/nowhere/o.parquet")
    batches.fail(row.id, "the disk is full", holder="a run")
    with pytest.raises(BatchFailed, match="the disk is full"):
        await await_table(row, batches)


async def test_a_cancelled_batch_is_an_interruption(batches: Batches) -> None:
    row = batches.submit(SPEC)
    batches.cancel(row.id, holder="a run")
    with pytest.raises(Cancelled):
        await follow(row.id, batches, MemoryContentStore(), lambda done, total, note: None, "local")


async def test_a_batch_that_is_not_done_has_no_record(batches: Batches) -> None:
    with pytest.raises(BatchFailed, match="has no result"):
        await record_of(batches.submit(SPEC), MemoryContentStore())
