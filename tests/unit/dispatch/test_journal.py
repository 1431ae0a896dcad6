"""The journal: what was committed is what is read, however long the chain and whoever died."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from dim_pipelines.content.memory import MemoryContentStore
from dim_pipelines.content.store import Pin
from dim_pipelines.dispatch import journal as module
from dim_pipelines.dispatch.head import Batch
from dim_pipelines.dispatch.journal import Journal, JournalWriter, make_segment, read_journal
from dim_pipelines.dispatch.write_ahead import WriteAhead, read_write_ahead
from dim_pipelines.domain.batch import BatchSpec
from dim_pipelines.domain.cid import RAW, Cid
from dim_pipelines.domain.events import Segment, ShardDone, Usage
from dim_pipelines.errors import ContentMismatch, StaleEpoch
from dim_pipelines.testing.batches import MemoryBatchHead

WORK = Cid.of(RAW, b"work")
BATCH = Batch("b1", "local", BatchSpec.read({"name": "x", "models": ["m"], "input": "i"}))
PIN = Pin("local", "batch/b1")


class CountingStore(MemoryContentStore):
    """Counts round trips: a remote block costs 40 ms."""

    def __init__(self) -> None:
        super().__init__()
        self.trips = 0
        self.synced = 0

    async def get(self, cid: Cid) -> bytes:
        self.trips += 1
        return await super().get(cid)

    async def get_many(self, cids):  # type: ignore[no-untyped-def]
        self.trips += 1
        before = self.trips
        async for block in super().get_many(cids):
            yield block
        self.trips = before

    async def sync(self) -> None:
        self.synced += 1


def outcome(shard: int, node: str = "a") -> ShardDone:
    return ShardDone(shard, Cid.of(RAW, b"%d" % shard), 2, node, Usage(2, 3, 4, 5, 6))


def files_in(folder: Path) -> list[Path]:
    return list(folder.iterdir())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - the journal signals nobody
            await asyncio.sleep(0.01)


def writer(
    store: MemoryContentStore, row: MemoryBatchHead, folder: Path, journal: Journal | None = None, epoch: int = 1
) -> JournalWriter:
    return JournalWriter(
        store,
        row,
        BATCH,
        epoch,
        WORK,
        journal=journal or Journal(),
        write_ahead=WriteAhead(folder, "b1", epoch, WORK),
        pin=PIN,
    )


@pytest.fixture
def row() -> MemoryBatchHead:
    row = MemoryBatchHead("b1")
    row.take_epoch("b1", "test")
    return row


@pytest.mark.parametrize("segments", [1, 2, 3, 4, 5, 8, 9, 17, 40])
async def test_what_is_committed_is_read_in_few_trips(
    segments: int, tmp_path: Path, row: MemoryBatchHead, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHECKPOINT_EVERY", 4)
    monkeypatch.setattr(module, "INDEX_PAGE_SEGMENTS", 8)
    store = CountingStore()
    writing = writer(store, row, tmp_path)
    for number in range(segments):
        await writing.append([outcome(number, "ab"[number % 2])])
        await writing.commit()
        if number == segments // 2:  # go on as another process would
            journal = await read_journal(store, row.rows["b1"].head, batch="b1", owner="local")
            writing = writer(store, row, tmp_path, journal)
    assert store.synced == segments
    store.trips = 0
    journal = await read_journal(store, row.rows["b1"].head, batch="b1", owner="local")
    assert store.trips <= 4 + 4
    assert list(journal.done) == list(range(segments))
    assert [journal.done.node(shard) for shard in journal.done] == ["ab"[number % 2] for number in range(segments)]
    assert (journal.work, journal.head, len(journal.segments)) == (WORK, row.rows["b1"].head, segments)
    pinned = {cid for cid, pin in await store.pins() if pin == PIN}
    assert {journal.segments[number] for number in range(segments)} <= pinned
    assert files_in(tmp_path) == []


async def test_many_outcomes_are_several_segments(tmp_path: Path, row: MemoryBatchHead) -> None:
    store = MemoryContentStore()
    writing = writer(store, row, tmp_path)
    running = asyncio.create_task(writing.run())
    await writing.append([outcome(shard) for shard in range(2500)])
    writing.close()
    await running
    journal = await read_journal(store, row.rows["b1"].head, batch="b1", owner="local")
    assert (len(journal.segments), len(journal.done)) == (3, 2500)


async def test_an_outcome_waits_a_second_at_most_and_a_stale_run_ends(
    tmp_path: Path, row: MemoryBatchHead, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SEGMENT_S", 0.01)
    writing = writer(MemoryContentStore(), row, tmp_path)
    running = asyncio.create_task(writing.run())
    await writing.append([outcome(0)])
    await until(lambda: row.rows["b1"].head is not None)
    row.take_epoch("b1", "another")
    await writing.append([outcome(1)])
    with pytest.raises(StaleEpoch):
        await running
    await writing.release()


async def test_an_overtaken_run_moves_nothing_and_its_outcomes_stay_in_its_file(
    tmp_path: Path, row: MemoryBatchHead
) -> None:
    store = MemoryContentStore()
    writing = writer(store, row, tmp_path)
    row.take_epoch("b1", "another")
    await writing.append([outcome(0)])
    with pytest.raises(StaleEpoch):
        await writing.commit()
    assert row.rows["b1"].head is None
    assert read_write_ahead(tmp_path, "b1", WORK)[0] == [outcome(0)]


async def test_what_another_run_left_is_journaled_and_its_files_go(tmp_path: Path, row: MemoryBatchHead) -> None:
    store = MemoryContentStore()
    dead = WriteAhead(tmp_path, "b1", 0, WORK)
    dead.append([outcome(0), outcome(1)])
    dead.close()
    outcomes, files = read_write_ahead(tmp_path, "b1", WORK)
    writing = writer(store, row, tmp_path)
    writing.adopt(outcomes, files)
    writing.close()
    await writing.run()
    assert files_in(tmp_path) == []
    journal = await read_journal(store, row.rows["b1"].head, batch="b1", owner="local")
    assert list(journal.done) == [0, 1]


async def test_a_journal_of_somebody_else_is_refused(tmp_path: Path, row: MemoryBatchHead) -> None:
    store = MemoryContentStore()
    writing = writer(store, row, tmp_path)
    await writing.append([outcome(0)])
    await writing.commit()
    head = row.rows["b1"].head
    for batch, owner in (("b2", "local"), ("b1", "eve")):
        with pytest.raises(ContentMismatch, match="belongs to batch b1 of local"):
            await read_journal(store, head, batch=batch, owner=owner)


async def test_a_gap_in_the_chain_is_refused(tmp_path: Path) -> None:
    from dim_pipelines.content.store import Block
    from dim_pipelines.domain.cid import DAG_CBOR

    store = MemoryContentStore()
    segment = make_segment(BATCH, 1, 3, WORK, [outcome(0)], previous=None, checkpoint=None)
    data = segment.encode()
    cid = Cid.of(DAG_CBOR, data)
    await store.put([Block(cid, data)])
    with pytest.raises(ContentMismatch, match="names no segment before it"):
        await read_journal(store, cid, batch="b1", owner="local")


def test_a_segment_names_each_node_once() -> None:
    segment = make_segment(
        BATCH, 1, 0, WORK, [outcome(0, "a"), outcome(1, "b"), outcome(2, "a")], previous=None, checkpoint=None
    )
    assert segment.nodes == ["a", "b"]
    assert [item[3] for item in segment.outcomes] == [0, 1, 0]
    assert Segment.decode(segment.encode()) == segment
