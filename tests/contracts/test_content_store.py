"""What every content store promises, run against each of them.

A new store adds a line to `STORES` and an opener to `store`.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dim_pipelines.content import unixfs
from dim_pipelines.content.embedded import EmbeddedContentStore
from dim_pipelines.content.kubo import KuboContentStore
from dim_pipelines.content.memory import MemoryContentStore
from dim_pipelines.content.store import MAX_BLOCK_BYTES, Block, ContentStore, Pin
from dim_pipelines.domain.cid import DAG_CBOR, DAG_PB, RAW, Cid
from dim_pipelines.domain.format import encode_cbor
from dim_pipelines.errors import ContentMismatch, ContentNotFound, ContentUnavailable

STORES = ("memory", "embedded", "kubo")
HOUR_MS = 3_600_000


@pytest.fixture(params=STORES)
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[ContentStore]:
    opened: ContentStore
    if request.param == "memory":
        opened = MemoryContentStore()
    elif request.param == "embedded":
        opened = await EmbeddedContentStore.open(tmp_path / "store")
    else:
        opened = await KuboContentStore.connect(request.getfixturevalue("kubo_address"), timeout_s=5.0)
    yield opened
    await opened.close()
    if isinstance(opened, KuboContentStore):  # the tests share it, so each leaves it without pins
        again = await KuboContentStore.connect(opened.address)
        for root, pin in await again.pins():
            await again.unpin(root, pin)
        await again.close()


def raw(size: int = 40) -> Block:
    data = os.urandom(size)
    return Block(Cid.of(RAW, data), data)


def parent(*children: Cid) -> Block:
    data = encode_cbor({"links": list(children), "salt": os.urandom(8)})
    return Block(Cid.of(DAG_CBOR, data), data)


def pin_of(label: str = "batch/1", owner: str = "local", expires_ms: int | None = None) -> Pin:
    return Pin(owner, label, expires_ms)


def now_ms() -> int:
    return time.time_ns() // 1_000_000


async def read_many(store: ContentStore, cids: list[Cid]) -> list[Block]:
    return [block async for block in store.get_many(cids)]


async def test_is_a_content_store(store: ContentStore) -> None:
    assert isinstance(store, ContentStore)
    assert store.swarm == "" or store.swarm.startswith("kubo:")


@pytest.mark.parametrize("size", [0, 1, 16384, 65536, 65537, 262144, MAX_BLOCK_BYTES])
async def test_gives_back_what_was_put(store: ContentStore, size: int) -> None:
    block = raw(size)
    await store.put([block])
    assert await store.get(block.cid) == block.data
    assert await store.have([block.cid]) == {block.cid}


async def test_keeps_blocks_of_every_codec_apart_from_their_bytes(store: ContentStore) -> None:
    block = parent(raw().cid)
    await store.put([block])
    assert await store.get(block.cid) == block.data


async def test_putting_twice_is_putting_once(store: ContentStore) -> None:
    blocks = [raw(30), raw(70_000)]
    await store.put(blocks)
    await store.put([*blocks, *blocks])
    assert await read_many(store, [block.cid for block in blocks]) == blocks


async def test_putting_nothing_is_allowed(store: ContentStore) -> None:
    await store.put([])
    await store.put([], pin=pin_of())
    assert await store.pins() == []
    assert await read_many(store, []) == []
    assert await store.have([]) == frozenset()


@pytest.mark.parametrize("data", [b"", b"cut", b"something else that is longer"])
async def test_refuses_bytes_that_the_cid_does_not_name_and_stores_nothing(store: ContentStore, data: bytes) -> None:
    good = raw()
    with pytest.raises(ContentMismatch):
        await store.put([good, Block(Cid.of(RAW, b"cut short"), data)], pin=pin_of())
    assert await store.have([good.cid]) == frozenset()
    assert await store.pins() == []


@pytest.mark.parametrize("codec", [DAG_PB, DAG_CBOR])
@pytest.mark.parametrize("data", [b"\xff\xff", b"\x0a\x05abc", b"\x81" * 100_000])
async def test_refuses_a_block_that_is_not_of_its_codec(store: ContentStore, codec: int, data: bytes) -> None:
    with pytest.raises(ContentMismatch):
        await store.put([Block(Cid.of(codec, data), data)])


async def test_refuses_a_block_that_is_too_large(store: ContentStore) -> None:
    with pytest.raises(ContentMismatch):
        await store.put([raw(MAX_BLOCK_BYTES + 1)])


async def test_says_not_found(store: ContentStore) -> None:
    missing = raw()
    with pytest.raises(ContentNotFound):
        await store.get(missing.cid)
    with pytest.raises(ContentNotFound):
        await read_many(store, [missing.cid])
    assert await store.have([missing.cid]) == frozenset()


async def test_reads_many_in_the_given_order_with_repetitions(store: ContentStore) -> None:
    blocks = [raw(index * 50) for index in range(150)]
    await store.put(blocks)
    order = [*reversed(blocks), blocks[3], blocks[3]]
    assert await read_many(store, [block.cid for block in order]) == order


async def test_a_reader_of_many_may_stop_early(store: ContentStore) -> None:
    blocks = [raw(5000) for _ in range(200)]
    await store.put(blocks)
    async for block in store.get_many([block.cid for block in blocks] + [raw().cid]):
        assert block == blocks[0]
        break
    assert await store.get(blocks[1].cid) == blocks[1].data


async def test_a_missing_block_among_many_comes_after_those_before_it(store: ContentStore) -> None:
    blocks = [raw() for _ in range(3)]
    await store.put(blocks)
    seen = []
    with pytest.raises(ContentNotFound):
        async for block in store.get_many([*(block.cid for block in blocks), raw().cid]):
            seen.append(block)
    assert seen == blocks


async def test_many_callers_at_once(store: ContentStore) -> None:
    groups = [[raw(200 + index) for index in range(10)] for _ in range(12)]
    await asyncio.gather(*(store.put(group) for group in groups))
    found = await asyncio.gather(*(store.get(block.cid) for group in groups for block in group))
    assert list(found) == [block.data for group in groups for block in group]


async def test_have_tells_them_apart(store: ContentStore) -> None:
    here, absent = [raw() for _ in range(20)], [raw() for _ in range(20)]
    await store.put(here)
    assert await store.have([block.cid for block in [*here, *absent]]) == {block.cid for block in here}


async def test_a_pin_needs_everything_below_its_root(store: ContentStore) -> None:
    leaf = raw()
    middle = parent(leaf.cid)
    root = parent(middle.cid)
    await store.put([root, middle])
    with pytest.raises(ContentNotFound):
        await store.pin(root.cid, pin_of())
    assert await store.pins() == []
    await store.put([leaf])
    await store.pin(root.cid, pin_of())
    assert await store.pins() == [(root.cid, pin_of())]


async def test_a_failed_pin_leaves_the_earlier_one(store: ContentStore) -> None:
    root = parent(raw().cid)
    await store.put([root], pin=pin_of())
    with pytest.raises(ContentNotFound):
        await store.pin(root.cid, pin_of(expires_ms=5))
    assert await store.pins() == [(root.cid, pin_of())]


async def test_owner_and_label_and_root_make_a_pin(store: ContentStore) -> None:
    blocks = [raw(), raw()]
    await store.put(blocks)
    pins = {
        (block.cid, pin_of(label, owner))
        for block in blocks
        for label in ("model/a", "model/ä b:c%")
        for owner in ("local", "another/owner:1")
    }
    for root, pin in pins:
        await store.pin(root, pin)
        await store.pin(root, pin)
    assert sorted(await store.pins(), key=str) == sorted(pins, key=str)
    one = next(iter(pins))
    await store.unpin(*one)
    await store.unpin(*one)
    assert sorted(await store.pins(), key=str) == sorted(pins - {one}, key=str)


async def test_pinning_again_changes_the_end(store: ContentStore) -> None:
    block = raw()
    await store.put([block])
    await store.pin(block.cid, pin_of(expires_ms=now_ms() + HOUR_MS))
    await store.pin(block.cid, pin_of())
    assert await store.pins() == [(block.cid, pin_of())]


async def test_lists_pins_by_the_beginning_of_their_label(store: ContentStore) -> None:
    blocks = [raw() for _ in range(4)]
    await store.put(blocks[:2], pin=pin_of("batch/model/x"))
    await store.put(blocks[2:3], pin=pin_of("model/digits"))
    await store.put(blocks[3:])
    await store.pin(blocks[3].cid, pin_of("model/text"))
    found = await store.pins("model/")
    assert sorted(pin.label for _, pin in found) == ["model/digits", "model/text"]
    assert len(await store.pins()) == 4
    assert await store.pins("models") == []


async def test_putting_with_a_pin_holds_each_block_alone(store: ContentStore) -> None:
    leaf, missing = raw(), raw()
    root = parent(leaf.cid, missing.cid)
    await store.put([leaf])
    await store.put([root], pin=pin_of())
    assert await store.pins() == [(root.cid, pin_of())]
    await store.collect(now_ms() + 1000, grace_s=0.0)
    assert await store.have([root.cid, leaf.cid]) == {root.cid}


async def test_unpinning_one_of_a_group_keeps_the_others(store: ContentStore) -> None:
    blocks = [raw() for _ in range(5)]
    await store.put(blocks, pin=pin_of())
    await store.unpin(blocks[2].cid, pin_of())
    kept = blocks[:2] + blocks[3:]
    assert {root for root, _ in await store.pins()} == {block.cid for block in kept}
    await store.collect(now_ms() + 1000, grace_s=0.0)
    assert await store.have([block.cid for block in blocks]) == {block.cid for block in kept}


async def test_collects_what_no_pin_reaches(store: ContentStore) -> None:
    leaf, other = raw(100), raw(70_000)
    root = parent(leaf.cid)
    top = parent(root.cid)
    await store.put([leaf, other, root, top])
    await store.pin(top.cid, pin_of())
    collected = await store.collect(now_ms() + 1000, grace_s=0.0)
    assert collected.blocks >= 1
    assert await store.have([leaf.cid, other.cid, root.cid, top.cid]) == {leaf.cid, root.cid, top.cid}
    with pytest.raises(ContentNotFound):
        await store.get(other.cid)
    await store.put([other])
    assert await store.get(other.cid) == other.data


async def test_a_collection_leaves_what_is_young(store: ContentStore) -> None:
    block = raw()
    await store.put([block])
    await store.collect(now_ms() + 1000)
    assert await store.have([block.cid]) == {block.cid}
    await store.collect(now_ms() + HOUR_MS + 1000)
    assert await store.have([block.cid]) == frozenset()


async def test_a_pin_that_has_ended_holds_nothing(store: ContentStore) -> None:
    kept, ended = raw(), raw()
    later = now_ms() + 2 * HOUR_MS
    await store.put([kept], pin=pin_of(expires_ms=later + HOUR_MS))
    await store.put([ended], pin=pin_of(expires_ms=later))
    assert len(await store.pins()) == 2
    await store.collect(later)
    assert [root for root, _ in await store.pins()] == [kept.cid]
    assert await store.have([kept.cid, ended.cid]) == {kept.cid}


async def test_one_of_two_pins_is_enough(store: ContentStore) -> None:
    block = raw()
    await store.put([block], pin=pin_of(owner="one"))
    await store.pin(block.cid, pin_of(owner="two"))
    await store.unpin(block.cid, pin_of(owner="two"))
    await store.collect(now_ms() + 1000, grace_s=0.0)
    assert await store.have([block.cid]) == {block.cid}


async def test_files_and_folders_are_held_by_their_root(store: ContentStore, tmp_path: Path) -> None:
    data = os.urandom(600_000)
    (tmp_path / "input").write_bytes(data)
    root = await unixfs.add_folder(store, {"a/b.bin": tmp_path / "input", "c.txt": b"text"}, pin=pin_of("model/m"))
    await store.collect(now_ms() + 1000, grace_s=0.0)
    listing = await unixfs.list_folder(store, root)
    assert sorted(listing) == ["a/b.bin", "c.txt"]
    assert await unixfs.read_bytes(store, listing["a/b.bin"]) == data
    assert await unixfs.read_file(store, listing["a/b.bin"], tmp_path / "output") == len(data)
    assert (tmp_path / "output").read_bytes() == data


async def test_all_stores_give_one_name(store: ContentStore) -> None:
    files = {"model.bin": b"\x07" * 700_000, "deep/er/x": b"", "z": b"z"}
    assert str(await unixfs.add_folder(store, files)) == "bafybeid4khykt5vdh7xylcczd5pjzqw22rrrqyaw2mbxa3yv4wdlkr65eu"


async def test_sync_returns(store: ContentStore) -> None:
    await store.put([raw(100), raw(100_000)])
    await store.sync()
    await store.sync()


async def test_a_closed_store_says_so(store: ContentStore) -> None:
    block = raw()
    await store.put([block])
    await store.close()
    await store.close()
    for call in (store.get(block.cid), store.put([block]), store.have([block.cid]), store.pins(), store.sync()):
        with pytest.raises(ContentUnavailable):
            await call


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=st.lists(st.integers(0, 70_000), max_size=12), seed=st.integers(0, 1000))
async def test_law_what_is_put_comes_back(store: ContentStore, sizes: list[int], seed: int) -> None:
    random = Random(seed)
    blocks = [Block(Cid.of(RAW, data), data) for data in (random.randbytes(size) for size in sizes)]
    await store.put(blocks)
    assert await read_many(store, [block.cid for block in blocks]) == blocks
    assert await store.have([block.cid for block in blocks]) == {block.cid for block in blocks}
