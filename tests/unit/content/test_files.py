from __future__ import annotations

import os
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dim_pipelines.content import unixfs
from dim_pipelines.content.dag_pb import FILE, Link, encode_directory, encode_file, encode_node
from dim_pipelines.content.files import CHUNK_BYTES, FileTree, chunked, file_blocks
from dim_pipelines.content.memory import MemoryContentStore
from dim_pipelines.content.store import Block, Pin
from dim_pipelines.domain.cid import DAG_CBOR, DAG_PB, RAW, Cid
from dim_pipelines.domain.format import encode_cbor
from dim_pipelines.errors import ConfigurationError, ContentNotFound, InputError


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def store() -> MemoryContentStore:
    return MemoryContentStore()


def raw(data: bytes) -> Block:
    return Block(Cid.of(RAW, data), data)


def node(children: Sequence[Block], sizes: Sequence[int], total: int | None = None, inline: bytes = b"") -> Block:
    message = encode_file(sum(sizes) if total is None else total, sizes)
    if inline:
        message = bytes((8, FILE, 0x12, len(inline))) + inline + message[2:]
    data = encode_node([Link(child.cid, "", 1) for child in children], message)
    return Block(Cid.of(DAG_PB, data), data)


# Made with `ipfs add -Q --only-hash --cid-version=1 --raw-leaves` of Kubo 0.43; every byte is 7.
KUBO = {
    0: "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku",
    CHUNK_BYTES: "bafkreibwg653s7uy2ae7fpsnbvffbzzughlla6z63y4yfhqjxp2wnklsua",
    CHUNK_BYTES + 1: "bafybeihldj5jykexbnvf5jx3cm2pjlqqa3hwyc5d6wo2y7ujlk7qjjgzlu",
    174 * CHUNK_BYTES: "bafybeiftshh7rag75n7kjayagjcbw5pq5qudrf322xeqastvz36vvx7nlm",
    174 * CHUNK_BYTES + 1: "bafybeicirej65in3f4hy3adhm6ry4mn6crs74n373phan5ippj3csgd2qy",
}


@pytest.mark.parametrize(("size", "cid"), KUBO.items())
def test_a_file_has_the_name_that_kubo_gives_it(size: int, cid: str) -> None:
    chunk = b"\x07" * CHUNK_BYTES
    chunks = [chunk] * (size // CHUNK_BYTES) + ([chunk[: size % CHUNK_BYTES]] if size % CHUNK_BYTES else [])
    *_, root = file_blocks(chunks)
    assert str(root.cid) == cid


@settings(max_examples=60)
@given(st.integers(1, 700))
def test_law_the_tree_is_that_of_whole_levels(count: int) -> None:
    """The tree that is built while chunks go by is the one that grouping each whole level by 174 gives."""
    chunks = [index.to_bytes(2) for index in range(count)]
    level = [(Cid.of(RAW, chunk), 2, 2) for chunk in chunks]
    expected = {cid for cid, _, _ in level}
    while len(level) > 1:
        above = []
        for start in range(0, len(level), 174):
            group = level[start : start + 174]
            sizes = [size for _, size, _ in group]
            data = encode_node([Link(cid, "", total) for cid, _, total in group], encode_file(sum(sizes), sizes))
            above.append((Cid.of(DAG_PB, data), sum(sizes), len(data) + sum(total for _, _, total in group)))
        level = above
        expected |= {cid for cid, _, _ in level}
    blocks = list(file_blocks(chunks))
    assert {block.cid for block in blocks} == expected
    assert blocks[-1].cid == level[0][0]


def test_the_builder_holds_a_few_levels_only() -> None:
    tree = FileTree()
    for index in range(40_000):
        for _ in tree.add(index.to_bytes(3)):
            pass
    assert sum(len(level) for level in tree._levels) <= 3 * 174
    assert tree.size == 120_000


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES, 46_000_000])
async def test_a_file_goes_in_and_out(store: MemoryContentStore, tmp_path: Path, size: int) -> None:
    data = (os.urandom(1 << 16) * (size // (1 << 16) + 1))[:size]
    (tmp_path / "in").write_bytes(data)
    seen: list[int] = []
    cid = await unixfs.add_file(store, tmp_path / "in", pin=Pin("local", "x"), progress=seen.append)
    assert cid == await unixfs.add_bytes(store, data)
    assert (seen[-1] if seen else 0) == size
    assert await store.pins() == [(cid, Pin("local", "x"))]
    assert await unixfs.file_size(store, cid) == size
    assert await unixfs.read_bytes(store, cid) == data
    assert await unixfs.read_file(store, cid, tmp_path / "out", seen.append) == size
    assert (tmp_path / "out").read_bytes() == data
    assert names_in(tmp_path) == ["in", "out"]


async def test_says_which_file_cannot_be_read(store: MemoryContentStore, tmp_path: Path) -> None:
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(InputError, match=str(path)):
            await unixfs.add_file(store, path)


async def test_leaves_nothing_behind_when_a_part_is_missing(store: MemoryContentStore, tmp_path: Path) -> None:
    data = os.urandom(2 * CHUNK_BYTES)
    first, _, root = file_blocks(chunked(data))
    await store.put([first, root])
    with pytest.raises(ContentNotFound):
        await unixfs.read_file(store, root.cid, tmp_path / "out")
    assert names_in(tmp_path) == []


async def test_says_that_a_place_cannot_be_written(store: MemoryContentStore, tmp_path: Path) -> None:
    cid = await unixfs.add_bytes(store, b"x")
    with pytest.raises(ConfigurationError, match="missing"):
        await unixfs.read_file(store, cid, tmp_path / "missing" / "out")


async def test_a_limit_is_kept_before_anything_is_read(store: MemoryContentStore) -> None:
    cid = await unixfs.add_bytes(store, bytes(3 * CHUNK_BYTES))
    assert len(await unixfs.read_bytes(store, cid, limit=3 * CHUNK_BYTES)) == 3 * CHUNK_BYTES
    with pytest.raises(InputError, match="786432"):
        await unixfs.read_bytes(store, cid, limit=3 * CHUNK_BYTES - 1)


async def test_reads_files_whose_leaves_are_dag_pb(store: MemoryContentStore) -> None:
    leaves = [node([], [], 3, b"abc"), node([], [], 2, b"de")]
    root = node(leaves, [3, 2])
    await store.put([*leaves, root])
    assert await unixfs.read_bytes(store, root.cid) == b"abcde"


LEAF = raw(b"leaf")
BAD_FILES = {
    "dag-cbor": [Block(Cid.of(DAG_CBOR, encode_cbor({})), encode_cbor({}))],
    "not UnixFS": [Block(Cid.of(DAG_PB, encode_node([], b"\xff")), encode_node([], b"\xff"))],
    "a folder": [Block(Cid.of(DAG_PB, encode_node([], encode_directory())), encode_node([], encode_directory()))],
    "more sizes than links": [LEAF, node([LEAF], [4, 4])],
    "fewer sizes than links": [LEAF, node([LEAF, LEAF], [4])],
    "another total": [LEAF, node([LEAF], [4], 5)],
    "a leaf of another size": [LEAF, node([LEAF], [5])],
    "a node of another size": [LEAF, node([LEAF], [4]), node([node([LEAF], [4])], [5])],
    "an empty part": [raw(b""), node([raw(b"")], [0])],
    "a child that is dag-cbor": [
        Block(Cid.of(DAG_CBOR, b"\xa0"), b"\xa0"),
        node([Block(Cid.of(DAG_CBOR, b"\xa0"), b"\xa0")], [1]),
    ],
}


@pytest.mark.parametrize("blocks", BAD_FILES.values(), ids=BAD_FILES)
async def test_refuses_a_file_that_contradicts_itself(
    store: MemoryContentStore, tmp_path: Path, blocks: list[Block]
) -> None:
    await store.put(blocks)
    with pytest.raises(InputError):
        await unixfs.read_bytes(store, blocks[-1].cid)
    with pytest.raises(InputError):
        await unixfs.read_file(store, blocks[-1].cid, tmp_path / "out")
    assert names_in(tmp_path) == []


async def test_a_bomb_of_width_is_refused_by_its_size(store: MemoryContentStore) -> None:
    """Nine blocks that claim 174^8 leaves: 3,000 years of reading."""
    block, size = LEAF, 4
    await store.put([block])
    for _ in range(8):
        block, size = node([block] * 174, [size] * 174), size * 174
        await store.put([block])
    with pytest.raises(InputError, match="more than"):
        await unixfs.read_bytes(store, block.cid)


async def test_a_chain_without_end_is_refused_by_its_depth(store: MemoryContentStore) -> None:
    block = LEAF
    await store.put([block])
    for _ in range(2000):
        block = node([block], [4])
        await store.put([block])
    with pytest.raises(InputError, match="deeper"):
        await unixfs.read_bytes(store, block.cid)
    assert len([cid async for cid in unixfs.tree_blocks(store, block.cid)]) == 2001


async def test_a_tree_names_each_block_once_and_reads_no_leaf(store: MemoryContentStore) -> None:
    missing = Cid.of(RAW, b"not here")
    page = Block(Cid.of(DAG_CBOR, encode_cbor([missing, LEAF.cid])), encode_cbor([missing, LEAF.cid]))
    root = Block(Cid.of(DAG_CBOR, encode_cbor([page.cid] * 5)), encode_cbor([page.cid] * 5))
    await store.put([page, root])
    assert [cid async for cid in unixfs.tree_blocks(store, root.cid)] == [root.cid, page.cid, missing, LEAF.cid]


class Silent(MemoryContentStore):
    """Gives a block more than it should."""

    async def get_many(self, cids: Sequence[Cid]) -> AsyncIterator[Block]:
        for cid in cids:
            yield Block(cid, b"")


async def test_a_store_that_cuts_is_noticed() -> None:
    store = Silent()
    cid = await unixfs.add_bytes(store, bytes(2 * CHUNK_BYTES))
    with pytest.raises(InputError):
        await unixfs.read_bytes(store, cid)
