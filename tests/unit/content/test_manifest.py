from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dim_pipelines.content.manifest import (
    MAX_ID_BYTES,
    DeadWriter,
    ShardWriter,
    dead_ids,
    read_dataset,
    read_result,
    shards,
    write_root,
)
from dim_pipelines.content.memory import MemoryContentStore
from dim_pipelines.content.store import Block, Pin
from dim_pipelines.domain.cid import DAG_CBOR, RAW, Cid
from dim_pipelines.domain.dataset import MAX_PAGE_BYTES, Column, Dataset, DeadPage, PageEntry, Result, ShardPage
from dim_pipelines.errors import ContentMismatch, InputError

PIN = Pin("local", "batch/b")


def shard(number: int) -> Cid:
    return Cid.of(RAW, str(number).encode())


def dataset(**changes: Any) -> Dataset:
    given: dict[str, Any] = {"rows": 0, "shards": 0, "pages": (), **changes}
    return Dataset(columns=(Column(name="row", type="int64"),), shard_rows=1, **given)


async def written(store: MemoryContentStore, entries: list[tuple[Cid, int]], page_bytes: int) -> Dataset:
    writer = ShardWriter(store, page_bytes, PIN)
    for cid, rows in entries:
        await writer.add(cid, rows)
    pages = await writer.close()
    return dataset(rows=writer.rows, shards=writer.shards, pages=pages)


entries = st.lists(st.tuples(st.integers(0, 1000).map(shard), st.integers(0, 2**40)), max_size=60)


@given(entries, st.integers(120, 600))
async def test_a_list_of_shards_comes_back_in_order(listed: list[tuple[Cid, int]], page_bytes: int) -> None:
    store = MemoryContentStore()
    root = await written(store, listed, page_bytes)
    assert [(cid, rows) async for _, cid, rows in shards(store, root)] == listed
    assert [index async for index, _, _ in shards(store, root)] == list(range(len(listed)))


@given(entries, st.integers(120, 600))
async def test_pages_are_full_and_never_larger_than_the_limit(listed: list[tuple[Cid, int]], page_bytes: int) -> None:
    store = MemoryContentStore()
    root = await written(store, listed, page_bytes)
    sizes = [len(await store.get(entry.page)) for entry in root.pages]
    assert all(size <= page_bytes for size in sizes)
    # an item takes at most 51 bytes, and 4 are kept for the head of the list
    assert all(size > page_bytes - 55 for size in sizes[:-1])


@given(st.lists(st.integers(-(2**63), 2**63 - 1) | st.text(st.characters(exclude_categories=["Cs"]), max_size=40)))
async def test_dead_ids_come_back_in_order(ids: list[int | str]) -> None:
    store = MemoryContentStore()
    writer = DeadWriter(store, 200, PIN)
    for row in ids:
        await writer.add(row)
    root = dataset(dead=await writer.close(), dead_rows=writer.rows)
    assert [row async for row in dead_ids(store, root)] == ids
    assert all([len(await store.get(entry.page)) <= 200 for entry in root.dead])


async def test_a_page_of_the_real_size_holds_eleven_thousand_shards() -> None:
    store = MemoryContentStore()
    root = await written(store, [(shard(0), 32)] * 25_000, MAX_PAGE_BYTES)
    sizes = [len(await store.get(entry.page)) for entry in root.pages]
    assert max(sizes) <= MAX_PAGE_BYTES
    assert [entry.items for entry in root.pages] == [11_914, 11_914, 1_172]
    assert sum([1 async for _ in shards(store, root)]) == 25_000


async def test_pages_are_held_until_the_root_holds_them() -> None:
    store = MemoryContentStore()
    root = await written(store, [(shard(0), 1)], MAX_PAGE_BYTES)
    assert [cid for cid, pin in await store.pins() if pin.label == PIN.label] == [root.pages[0].page]


async def test_a_root_is_stored_pinned_and_read() -> None:
    store = MemoryContentStore()
    root = dataset()
    cid = await write_root(store, root, PIN)
    assert cid == root.cid()
    assert await read_dataset(store, cid) == root
    assert (cid, PIN) in await store.pins()
    result = Result(work=cid, columns=root.columns, rows=0, shards=0, pages=())
    other = await write_root(store, result)
    assert await read_result(store, other) == result
    assert len(await store.pins()) == 1


async def test_a_cid_of_something_else_is_no_dataset() -> None:
    store = MemoryContentStore()
    with pytest.raises(InputError, match="is not a dim/dataset"):
        await read_dataset(store, shard(0))
    cid = await write_root(store, dataset())
    with pytest.raises(InputError, match="expected a dim/result, found 'dim/dataset'"):
        await read_result(store, cid)


async def test_a_root_that_fits_no_block_is_refused() -> None:
    page = PageEntry(page=dataset().cid(), items=1, rows=1)
    with pytest.raises(InputError, match="a block holds"):
        await write_root(MemoryContentStore(), dataset(pages=(page,) * 20_000))


async def test_an_id_has_a_longest_length() -> None:
    writer = DeadWriter(MemoryContentStore())
    await writer.add("x" * MAX_ID_BYTES)
    with pytest.raises(InputError, match="the limit is 4096"):
        await writer.add("x" * (MAX_ID_BYTES + 20))


async def put(store: MemoryContentStore, page: ShardPage | DeadPage) -> Cid:
    data = page.encode()
    cid = Cid.of(DAG_CBOR, data)
    await store.put([Block(cid, data)])
    return cid


@pytest.mark.parametrize(
    ("items", "rows", "total_shards", "total_rows"),
    [(2, 3, 1, 3), (1, 4, 1, 4), (1, 3, 2, 3), (1, 3, 1, 4)],
)
async def test_pages_that_contradict_their_root_are_not_believed(
    items: int, rows: int, total_shards: int, total_rows: int
) -> None:
    store = MemoryContentStore()
    page = await put(store, ShardPage(shards=[(shard(0), 3)]))
    root = dataset(rows=total_rows, shards=total_shards, pages=(PageEntry(page=page, items=items, rows=rows),))
    with pytest.raises(ContentMismatch):
        [entry async for entry in shards(store, root)]


@pytest.mark.parametrize(("items", "total"), [(2, 2), (1, 2)])
async def test_dead_pages_that_contradict_their_root_are_not_believed(items: int, total: int) -> None:
    store = MemoryContentStore()
    page = await put(store, DeadPage(ids=[1]))
    root = dataset(dead=(PageEntry(page=page, items=items, rows=items),), dead_rows=total)
    with pytest.raises(ContentMismatch):
        [row async for row in dead_ids(store, root)]
