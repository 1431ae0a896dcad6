from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dim_pipelines.content import unixfs
from dim_pipelines.content.dag_pb import Link, encode_directory, encode_hamt, encode_node
from dim_pipelines.content.hamt import is_large, murmur3_64
from dim_pipelines.content.memory import MemoryContentStore
from dim_pipelines.content.store import Block, Pin
from dim_pipelines.domain.cid import DAG_PB, RAW, Cid
from dim_pipelines.errors import ConfigurationError, ContentNotFound, InputError


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def store() -> MemoryContentStore:
    return MemoryContentStore()


def folder(links: list[Link], message: bytes = b"") -> Block:
    data = encode_node(links, message or encode_directory())
    return Block(Cid.of(DAG_PB, data), data)


LEAF = Block(Cid.of(RAW, b"leaf"), b"leaf")


async def test_a_folder_goes_in_and_out(store: MemoryContentStore, tmp_path: Path) -> None:
    large = os.urandom(700_000)
    (tmp_path / "large").write_bytes(large)
    files: dict[str, Path | bytes] = {
        "b/large.bin": tmp_path / "large",
        "b/a": b"a",
        "b.txt": b"",
        "ä/ö/日本": b"text",
    }
    root = await unixfs.add_folder(store, files, pin=Pin("local", "model/x"))
    assert await store.pins() == [(root, Pin("local", "model/x"))]
    listing = await unixfs.read_folder(store, root, tmp_path / "out")
    assert sorted(listing) == sorted(files)
    assert listing == await unixfs.list_folder(store, root)
    assert (tmp_path / "out" / "b" / "large.bin").read_bytes() == large
    assert (tmp_path / "out" / "ä" / "ö" / "日本").read_bytes() == b"text"
    assert (tmp_path / "out" / "b.txt").read_bytes() == b""


async def test_the_order_of_the_files_means_nothing(store: MemoryContentStore) -> None:
    files = {"b": b"1", "a/x": b"2", "a.x": b"3", "B": b"4"}
    backwards = dict(reversed(files.items()))
    assert await unixfs.add_folder(store, files) == await unixfs.add_folder(store, backwards)


async def test_an_empty_folder(store: MemoryContentStore, tmp_path: Path) -> None:
    root = await unixfs.add_folder(store, {})
    assert str(root) == "bafybeiczsscdsbs7ffqz55asqdf3smv6klcw3gofszvwlyarci47bgf354"
    assert await unixfs.read_folder(store, root, tmp_path / "out") == {}
    assert (tmp_path / "out").is_dir()


@pytest.mark.parametrize("name", ["", ".", "..", "a/../b", "/a", "a/", "a//b", "a\0b", "x" * 256, "é" * 128])
async def test_refuses_names_that_no_folder_holds(store: MemoryContentStore, name: str) -> None:
    with pytest.raises(InputError):
        await unixfs.add_folder(store, {name: b"x"})


async def test_refuses_a_name_that_is_a_file_and_a_folder(store: MemoryContentStore) -> None:
    for files in ({"a": b"", "a/b": b""}, {"a/b": b"", "a": b""}):
        with pytest.raises(InputError):
            await unixfs.add_folder(store, files)


async def test_says_which_file_is_missing(store: MemoryContentStore, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere"):
        await unixfs.add_folder(store, {"a": tmp_path / "nowhere"})


BAD_FOLDERS = {
    "a file": LEAF,
    "not UnixFS": folder([], b"\xff"),
    "leads upwards": folder([Link(LEAF.cid, "../../etc/passwd", 4)]),
    "is the folder above": folder([Link(LEAF.cid, "..", 4)]),
    "is the folder itself": folder([Link(LEAF.cid, ".", 4)]),
    "has no name": folder([Link(LEAF.cid, "", 4)]),
    "has a long name": folder([Link(LEAF.cid, "n" * 256, 4)]),
    "has a zero byte": folder([Link(LEAF.cid, "a\0", 4)]),
    "names one twice": folder([Link(LEAF.cid, "a", 4), Link(LEAF.cid, "a", 4)]),
    "has a strange fanout": folder([Link(LEAF.cid, "00a", 4)], encode_hamt(b"\x01", 3, 0x22)),
    "has a vast fanout": folder([Link(LEAF.cid, "00a", 4)], encode_hamt(b"\x01", 1 << 40, 0x22)),
    "has a file for a shard": folder([Link(LEAF.cid, "00", 4)], encode_hamt(b"\x01", 256, 0x22)),
}


@pytest.mark.parametrize("bad", BAD_FOLDERS.values(), ids=BAD_FOLDERS)
async def test_refuses_folders_that_nobody_should_write_out(
    store: MemoryContentStore, tmp_path: Path, bad: Block
) -> None:
    await store.put([LEAF, bad])
    with pytest.raises(InputError):
        await unixfs.list_folder(store, bad.cid)
    with pytest.raises(InputError):
        await unixfs.read_folder(store, bad.cid, tmp_path / "out")
    assert names_in(tmp_path) == []


async def test_a_folder_in_itself_for_ever_is_refused(store: MemoryContentStore) -> None:
    block = folder([Link(LEAF.cid, "f", 4)])
    await store.put([LEAF, block])
    for _ in range(40):
        block = folder([Link(block.cid, "d", 1)])
        await store.put([block])
    with pytest.raises(InputError, match="deeper"):
        await unixfs.list_folder(store, block.cid)


async def test_a_bomb_of_paths_is_refused(store: MemoryContentStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dim_pipelines.content.folders.MAX_ENTRIES", 10_000)
    block = folder([Link(LEAF.cid, f"{index}", 4) for index in range(100)])
    await store.put([LEAF, block])
    for _ in range(8):
        block = folder([Link(block.cid, f"{index}", 1) for index in range(100)])
        await store.put([block])
    with pytest.raises(InputError, match="more than 10000 entries"):
        await unixfs.list_folder(store, block.cid)
    monkeypatch.undo()
    monkeypatch.setattr("dim_pipelines.content.folders.MAX_LISTING_CHARACTERS", 1000)
    with pytest.raises(InputError, match="too long"):
        await unixfs.list_folder(store, block.cid)


async def test_writes_nothing_when_a_file_is_missing(store: MemoryContentStore, tmp_path: Path) -> None:
    root = folder([Link(Cid.of(RAW, b"missing"), "a", 1)])
    await store.put([root])
    with pytest.raises(ContentNotFound):
        await unixfs.read_folder(store, root.cid, tmp_path / "out")
    assert names_in(tmp_path) == []


async def test_does_not_write_over_a_folder(store: MemoryContentStore, tmp_path: Path) -> None:
    root = await unixfs.add_folder(store, {"a": b""})
    with pytest.raises(ConfigurationError, match="there already"):
        await unixfs.read_folder(store, root, tmp_path)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigurationError, match="cannot write"):
        await unixfs.read_folder(store, root, tmp_path / "file" / "out")


@pytest.mark.parametrize(
    ("count", "cid"),
    [
        (4096, "bafybeicjwerg5rjqcp5kced7eeqnilymymyx6phpu4blyaj5y73szezib4"),
        (4097, "bafybeihnjcwnyzlpnqfiueu7hpyqqxmyk2wwnf323hwtmzemgii2bmmm6q"),
    ],
)
async def test_a_large_folder_is_sharded_where_kubo_shards_it(store: MemoryContentStore, count: int, cid: str) -> None:
    """Names of 28 bytes and CIDs of 36: 4096 entries are 256 KiB. The CIDs are Kubo 0.43's."""
    files = {f"{index:028d}": b"%d" % (index % 7) for index in range(count)}
    root = await unixfs.add_folder(store, files, pin=Pin("local", "x"))
    assert str(root) == cid
    listing = await unixfs.list_folder(store, root)
    assert sorted(listing) == sorted(files)
    assert await store.get(listing[f"{count - 1:028d}"]) == b"%d" % ((count - 1) % 7)


def test_the_size_of_a_folder_counts_bytes_of_names() -> None:
    assert not is_large([Link(LEAF.cid, "é" * 14, 1)] * 4096)
    assert is_large([Link(LEAF.cid, "é" * 15, 1)] * 4096)


def test_murmur3() -> None:
    """Vectors of the reference implementation's first 64 bits (github.com/spaolacci/murmur3, its tests)."""
    vectors = {
        "": 0x0000000000000000,
        "hello": 0xCBD8A7B341BD9B02,
        "hello, world": 0x342FAC623A5EBC8E,
        "19 Jan 2038 at 3:14:07 AM": 0xB89E5988B737AFFC,
        "The quick brown fox jumps over the lazy dog.": 0xCD99481F9EE902C9,
    }
    assert {text: murmur3_64(text.encode()) for text in vectors} == vectors


names = st.text(st.sampled_from("abé.-0"), min_size=1, max_size=3).filter(lambda name: name not in (".", ".."))


@settings(max_examples=50)
@given(st.dictionaries(st.tuples(st.sampled_from(["", "d/", "d/e/"]), names), st.binary(max_size=20), max_size=20))
async def test_law_what_is_added_is_listed(tree: dict[tuple[str, str], bytes]) -> None:
    files = {"".join(path): data for path, data in tree.items()}
    store = MemoryContentStore()
    inner = {"/".join(path.split("/")[:depth]) for path in files for depth in range(1, path.count("/") + 1)}
    if inner & set(files):
        return
    root = await unixfs.add_folder(store, files)
    listing = await unixfs.list_folder(store, root)
    assert {path: await store.get(cid) for path, cid in listing.items()} == files
