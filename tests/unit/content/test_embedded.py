"""What the embedded store does beyond the contract: damage, leftovers, full disks, other processes' moves."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from dim_pipelines.content import embedded_shelf, embedded_sweep
from dim_pipelines.content.embedded import EmbeddedContentStore
from dim_pipelines.content.embedded_folder import prepare, storage_errors
from dim_pipelines.content.embedded_shelf import SMALL_BYTES, Shelf
from dim_pipelines.content.store import Block, Pin
from dim_pipelines.domain.cid import DAG_CBOR, RAW, Cid
from dim_pipelines.domain.format import encode_cbor
from dim_pipelines.errors import (
    ConfigurationError,
    ContentError,
    ContentMismatch,
    ContentNotFound,
    ContentUnavailable,
)

PIN = Pin("local", "batch/1")
LATER_MS = 10**15


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[EmbeddedContentStore]:
    store = await EmbeddedContentStore.open(tmp_path)
    yield store
    await store.close()


def raw(size: int) -> Block:
    data = os.urandom(size)
    return Block(Cid.of(RAW, data), data)


def parent(*children: Cid) -> Block:
    data = encode_cbor(list(children))
    return Block(Cid.of(DAG_CBOR, data), data)


def path_of(folder: Path, block: Block) -> Path:
    return folder / "files" / block.cid[-1:].hex() / str(block.cid)


def files_of(folder: Path) -> list[Path]:
    return sorted(path for name in ("files", "incoming") for path in (folder / name).rglob("*") if path.is_file())


def change_row(folder: Path, block: Block, data: bytes) -> None:
    connection = sqlite3.connect(folder / "blocks.db", isolation_level=None)
    connection.execute(
        "UPDATE bytes SET data = ? WHERE row = (SELECT row FROM blocks WHERE cid = ?)", (data, block.cid)
    )
    connection.close()


async def test_small_blocks_are_rows_and_large_ones_files(store: EmbeddedContentStore, tmp_path: Path) -> None:
    small, large = raw(SMALL_BYTES), raw(SMALL_BYTES + 1)
    await store.put([small, large])
    assert files_of(tmp_path) == [path_of(tmp_path, large)]


@pytest.mark.parametrize("size", [1000, SMALL_BYTES + 1])
@pytest.mark.parametrize("damage", ["cut", "altered", "emptied"])
async def test_damage_is_never_data_and_the_next_put_mends_it(
    store: EmbeddedContentStore, tmp_path: Path, size: int, damage: str
) -> None:
    block, other = raw(size), raw(size)
    await store.put([block, other])
    bad = {"cut": block.data[:-1], "altered": block.data[:-1] + bytes((block.data[-1] ^ 1,)), "emptied": b""}[damage]
    if size > SMALL_BYTES:
        path_of(tmp_path, block).write_bytes(bad)
    else:
        change_row(tmp_path, block, bad)
    with pytest.raises(ContentMismatch):
        [each async for each in store.get_many([other.cid, block.cid])]
    assert await store.have([block.cid, other.cid]) == {other.cid}
    with pytest.raises(ContentError):
        await store.get(block.cid)
    with pytest.raises(ContentNotFound):
        await store.pin(block.cid, PIN)
    await store.put([block])
    assert await store.get(block.cid) == block.data
    assert await store.have([block.cid]) == {block.cid}


async def test_a_file_that_vanished_is_written_again(store: EmbeddedContentStore, tmp_path: Path) -> None:
    block = raw(SMALL_BYTES + 1)
    await store.put([block])
    path_of(tmp_path, block).unlink()
    with pytest.raises(ContentNotFound):
        await store.get(block.cid)
    assert await store.have([block.cid]) == frozenset()
    await store.put([block])
    assert await store.get(block.cid) == block.data


async def test_damage_that_was_mended_meanwhile_is_not_noted(store: EmbeddedContentStore, tmp_path: Path) -> None:
    block = raw(SMALL_BYTES + 1)
    await store.put([block])
    await store._write(lambda shelf: shelf.note_damage(block.cid))
    await store._write(lambda shelf: shelf.note_damage(raw(5).cid))
    assert await store.have([block.cid]) == {block.cid}
    assert await store.get(block.cid) == block.data


async def test_a_cut_file_of_a_power_loss_is_written_again(store: EmbeddedContentStore, tmp_path: Path) -> None:
    block = raw(SMALL_BYTES + 1)
    await store.put([block])
    path_of(tmp_path, block).write_bytes(b"")
    await store.put([block])
    assert await store.get(block.cid) == block.data


async def test_nothing_is_collected_below_a_damaged_node(store: EmbeddedContentStore, tmp_path: Path) -> None:
    leaf, garbage = raw(10), raw(10)
    root = parent(leaf.cid)
    await store.put([leaf, root, garbage])
    await store.pin(root.cid, PIN)
    change_row(tmp_path, root, b"other")
    with pytest.raises(ContentMismatch, match="nothing was collected"):
        await store.collect(LATER_MS)
    assert await store.have([leaf.cid, garbage.cid]) == {leaf.cid, garbage.cid}
    await store.put([root])  # the size is right, so this alone mends nothing; the read above has told
    await store.unpin(root.cid, PIN)
    assert (await store.collect(LATER_MS)).blocks == 3


async def test_a_pin_made_while_a_collection_marks_is_kept(
    store: EmbeddedContentStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leaf, garbage = raw(10), raw(SMALL_BYTES + 1)
    root = parent(leaf.cid)
    await store.put([leaf, root, garbage])
    marked = embedded_sweep._Marks._mark
    other = Shelf(tmp_path)
    pinned = []

    def mark_then_pin(marks: embedded_sweep._Marks) -> None:
        marked(marks)
        if not pinned:
            pinned.append(other.put_pin(root.cid, PIN))

    monkeypatch.setattr(embedded_sweep._Marks, "_mark", mark_then_pin)
    collected = await store.collect(LATER_MS)
    other.close()
    assert (collected.blocks, collected.bytes) == (1, len(garbage.data))
    assert await store.have([leaf.cid, root.cid]) == {leaf.cid, root.cid}
    assert files_of(tmp_path) == []


async def test_a_put_between_hiding_and_removing_brings_the_blocks_back(
    store: EmbeddedContentStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = [raw(10), raw(SMALL_BYTES + 1)]
    await store.put(blocks)
    remove = embedded_sweep._remove
    other = Shelf(tmp_path)

    def put_then_remove(shelf: Shelf) -> embedded_sweep.Collected:
        assert not other.has(blocks[0].cid)
        other.put(blocks, None)
        return remove(shelf)

    monkeypatch.setattr(embedded_sweep, "_remove", put_then_remove)
    assert (await store.collect(LATER_MS)).blocks == 0
    other.close()
    for block in blocks:
        assert await store.get(block.cid) == block.data


async def test_a_collection_that_died_half_way_is_finished_by_the_next(
    store: EmbeddedContentStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = [raw(10), raw(SMALL_BYTES + 1)]
    await store.put(blocks)

    def die(shelf: Shelf) -> embedded_sweep.Collected:
        path_of(tmp_path, blocks[1]).unlink()  # as far as a killed process may have come
        raise ContentUnavailable

    with monkeypatch.context() as patched:
        patched.setattr(embedded_sweep, "_remove", die)
        with pytest.raises(ContentUnavailable):
            await store.collect(LATER_MS)
    assert await store.have([block.cid for block in blocks]) == frozenset()
    assert (await store.collect(0)).blocks == 2
    await store.put(blocks)
    assert await store.get(blocks[1].cid) == blocks[1].data


async def test_what_killed_processes_left_is_swept_when_it_is_old(store: EmbeddedContentStore, tmp_path: Path) -> None:
    kept, orphan, young = raw(SMALL_BYTES + 1), raw(SMALL_BYTES + 1), raw(SMALL_BYTES + 1)
    await store.put([kept], pin=PIN)
    for path in (path_of(tmp_path, orphan), path_of(tmp_path, young), tmp_path / "incoming" / "1-1"):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"left over")
    long_ago = time.time() - 10_000
    for path in files_of(tmp_path):
        if path != path_of(tmp_path, young):
            os.utime(path, (long_ago, long_ago))
    await store.collect(time.time_ns() // 1_000_000)
    assert files_of(tmp_path) == sorted([path_of(tmp_path, kept), path_of(tmp_path, young)])


async def test_a_collection_gives_the_space_back(store: EmbeddedContentStore, tmp_path: Path) -> None:
    await store.put([raw(50_000) for _ in range(100)])
    await store.sync()
    collected = await store.collect(LATER_MS)
    assert (collected.blocks, collected.bytes) == (100, 5_000_000)
    await store.close()
    assert (tmp_path / "blocks.db").stat().st_size < 500_000


async def test_many_pins_and_links_are_marked_in_batches(
    store: EmbeddedContentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded_sweep, "_BATCH", 7)
    leaves = [raw(20) for _ in range(60)]
    pages = [parent(*(leaf.cid for leaf in leaves[start : start + 5])) for start in range(0, 60, 5)]
    root = parent(*(page.cid for page in pages))
    garbage = [raw(20) for _ in range(50)]
    await store.put([*leaves, *pages, root, *garbage])
    await store.put(pages[:3], pin=Pin("local", "alone"))
    await store.pin(root.cid, PIN)
    assert (await store.collect(LATER_MS)).blocks == 50
    kept = {block.cid for block in [*leaves, *pages, root]}
    assert await store.have([*kept, *(block.cid for block in garbage)]) == kept
    await store.unpin(root.cid, PIN)
    await store.collect(LATER_MS)
    assert await store.have(list(kept)) == {page.cid for page in pages[:3]}


def full(shelf: Shelf) -> None:
    (pages,) = shelf.connection.execute("PRAGMA page_count").fetchone()
    shelf.connection.execute(f"PRAGMA max_page_count = {pages + 20}")


async def test_a_full_database_stores_all_or_nothing(store: EmbeddedContentStore, tmp_path: Path) -> None:
    before = [raw(30_000), raw(SMALL_BYTES + 1)]
    await store.put(before, pin=PIN)
    await store._write(full)
    blocks = [raw(SMALL_BYTES + 1), *(raw(30_000) for _ in range(20))]
    with pytest.raises(ContentUnavailable, match="no space left") as raised:
        await store.put(blocks, pin=PIN)
    assert "dim gc" in raised.value.hint
    assert await store.have([block.cid for block in blocks]) == frozenset()
    assert files_of(tmp_path) == [path_of(tmp_path, before[1])]
    assert len(await store.pins()) == 2
    for block in before:
        assert await store.get(block.cid) == block.data


async def test_a_full_file_system_leaves_no_part_of_a_file(
    store: EmbeddedContentStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Path.write_bytes
    written = []

    def write_until_full(path: Path, data: bytes) -> int:
        written.append(path)
        if len(written) == 3:
            write(path, data[: len(data) // 2])
            raise OSError(28, "No space left on device")
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", write_until_full)
    blocks = [raw(SMALL_BYTES + 1) for _ in range(4)]
    with pytest.raises(ContentUnavailable, match="no space left"):
        await store.put(blocks)
    assert files_of(tmp_path) == []
    assert await store.have([block.cid for block in blocks]) == frozenset()
    await store.put(blocks)
    assert len(await store.have([block.cid for block in blocks])) == 4


async def test_two_stores_of_one_folder_see_each_other(store: EmbeddedContentStore, tmp_path: Path) -> None:
    other = await EmbeddedContentStore.open(tmp_path)
    block = raw(100)
    await store.put([block], pin=PIN)
    assert await other.get(block.cid) == block.data
    assert await other.pins() == [(block.cid, PIN)]
    await other.close()


async def test_a_newer_store_is_refused(store: EmbeddedContentStore, tmp_path: Path) -> None:
    await store.close()
    connection = sqlite3.connect(tmp_path / "blocks.db")
    connection.execute("PRAGMA user_version = 9")
    connection.close()
    with pytest.raises(ConfigurationError, match="version 9"):
        await EmbeddedContentStore.open(tmp_path)


async def test_a_folder_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ContentUnavailable, match="cannot be used") as raised:
        await EmbeddedContentStore.open(tmp_path / "file" / "store")
    assert raised.value.hint


async def test_a_database_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "blocks.db").write_bytes(b"no database " * 500)
    with pytest.raises(ContentError, match="damaged"):
        await EmbeddedContentStore.open(tmp_path)


async def test_sync_covers_files_that_were_there_already(
    store: EmbeddedContentStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(embedded_shelf, "fsync", synced.append)
    other = await EmbeddedContentStore.open(tmp_path)
    block = raw(SMALL_BYTES + 1)
    await other.put([block])
    await other.close()
    synced.clear()
    await store.put([block])
    await store.sync()
    assert synced == [path_of(tmp_path, block), path_of(tmp_path, block).parent]
    synced.clear()
    await store.sync()
    assert synced == []


async def test_many_files_are_synced_at_once(store: EmbeddedContentStore, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Path] = []
    monkeypatch.setattr(embedded_shelf, "syncfs", lambda folder: not calls.append(folder))
    await store.put([raw(SMALL_BYTES + 1) for _ in range(40)])
    await store.sync()
    assert len(calls) == 1


async def test_what_a_sync_could_not_do_is_done_by_the_next(
    store: EmbeddedContentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.put([raw(SMALL_BYTES + 1)])
    with monkeypatch.context() as patched:
        patched.setattr(embedded_shelf, "fsync", lambda path: (_ for _ in ()).throw(OSError(5, "I/O error")))
        with pytest.raises(ContentUnavailable, match="I/O error"):
            await store.sync()
    synced: list[Path] = []
    monkeypatch.setattr(embedded_shelf, "fsync", synced.append)
    await store.sync()
    assert len(synced) == 2


async def test_a_long_log_is_moved_into_the_tables_beside_the_writers(
    store: EmbeddedContentStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dim_pipelines.content.embedded._CHECKPOINT_BYTES", 1000)
    await store.put([raw(60_000)])
    store._keeper.submit(lambda: None).result()
    assert (tmp_path / "blocks.db").stat().st_size > 60_000


async def test_a_cancelled_reader_leaves_the_store_usable(store: EmbeddedContentStore) -> None:
    blocks = [raw(1000) for _ in range(200)]
    await store.put(blocks)

    async def read() -> None:
        async for _ in store.get_many([block.cid for block in blocks]):
            await asyncio.sleep(0)
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await asyncio.create_task(read())
    assert await store.get(blocks[0].cid) == blocks[0].data


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(28, "No space left on device"), "no space left"),
        (OSError(122, "Disk quota exceeded"), "no space left"),
        (OSError(27, "File too large"), "no space left"),
        (OSError(30, "Read-only file system"), "Read-only"),
        (sqlite3.OperationalError("anything"), "anything"),
    ],
)
def test_errors_of_the_system_are_translated(tmp_path: Path, error: Exception, message: str) -> None:
    with pytest.raises(ContentUnavailable, match=message) as raised, storage_errors(tmp_path):
        raise error
    assert raised.value.__cause__ is error


def test_a_busy_folder_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded_shelf, "BUSY_S", 0.01)
    prepare(tmp_path)
    one, two = Shelf(tmp_path), Shelf(tmp_path)
    with one.writing(), pytest.raises(ContentUnavailable, match="busy"), storage_errors(tmp_path):
        two.put([raw(5)], None)
    one.close()
    two.close()
