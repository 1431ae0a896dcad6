"""Folders as blocks: the same CIDs as `ipfs add -r --cid-version=1 --raw-leaves`, over any store.

A folder is one dag-pb node with its entries in the order of their names' bytes, or a HAMT where that would be
too large; what is read is bounded in
depth, in entries and in names, because it may have been made by an attacker.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from dim_pipelines.content.dag_pb import (
    DIRECTORY,
    HAMT_SHARD,
    Link,
    decode_node,
    decode_unixfs,
    encode_directory,
    encode_node,
)
from dim_pipelines.content.files import MAX_DEPTH, BlockBatch, FileTree, add_stream, chunked, read_file, write_error
from dim_pipelines.content.hamt import hamt_blocks, is_large
from dim_pipelines.content.links import links
from dim_pipelines.content.store import Block, ContentStore, Pin
from dim_pipelines.domain.cid import DAG_PB, RAW, Cid
from dim_pipelines.errors import ConfigurationError, InputError

MAX_ENTRIES: Final = 2_000_000
"""Entries that a folder may have in all, its subfolders included, when it is listed."""
MAX_NAME_BYTES: Final = 255
"""Bytes of one name: what file systems take."""
MAX_LISTING_CHARACTERS: Final = 256 << 20
"""Characters that all paths of a listing may have together: a few blocks could name more than memory holds."""
_WRITE_AT_ONCE: Final = 32

_Tree = dict[str, "Path | bytes | _Tree"]


async def add_folder(store: ContentStore, files: Mapping[str, Path | bytes], *, pin: Pin | None = None) -> Cid:
    """Add files as a folder.

    Args:
        store: where to.
        files: path inside the folder (parts joined by `/`) → a file to stream, or its bytes.
        pin: holds the folder when given.

    Raises:
        InputError: a name that no folder can hold, a name twice, or a file that cannot be read.
        ContentUnavailable: the store cannot take it.
    """
    batch = BlockBatch(store)
    root = await _add_tree(batch, _nest(files))
    await batch.flush()
    if pin is not None:
        await store.pin(root.cid, pin)
    return root.cid


def _nest(files: Mapping[str, Path | bytes]) -> _Tree:
    tree: _Tree = {}
    for path, content in files.items():
        folder = tree
        *parents, name = path.split("/")
        for part in parents:
            inner = folder.setdefault(_checked_name(part), {})
            if not isinstance(inner, dict):
                raise InputError(f"{path!r} lies in something that is a file")
            folder = inner
        if _checked_name(name) in folder:
            raise InputError(f"{path!r} is there twice")
        folder[name] = content
    return tree


def _checked_name(name: str) -> str:
    size = len(name.encode("utf-8", "surrogateescape"))
    if name in ("", ".", "..") or "/" in name or "\0" in name or size > MAX_NAME_BYTES:
        raise InputError(f"not a file name: {name[:80]!r}")
    return name


async def _add_tree(batch: BlockBatch, tree: _Tree) -> Link:
    entries: list[Link] = []
    for name in sorted(tree, key=lambda name: name.encode("utf-8", "surrogateescape")):
        content = tree[name]
        if isinstance(content, dict):
            entry = await _add_tree(batch, content)
        else:
            builder = FileTree()
            if isinstance(content, Path):
                await add_stream(batch, builder, content)
            else:
                for chunk in chunked(content):
                    await batch.add(builder.add(chunk))
            await batch.add(builder.finish())
            entry = builder.root
        entries.append(Link(entry.cid, name, entry.size))
    if is_large(entries):
        root = entries[0]
        for block, link in hamt_blocks(entries):
            await batch.add([block])
            root = link
        return root
    data = encode_node(entries, encode_directory())
    block = Block(Cid.of(DAG_PB, data), data)
    await batch.add([block])
    return Link(block.cid, "", len(data) + sum(entry.size for entry in entries))


async def list_folder(store: ContentStore, cid: Cid) -> dict[str, Cid]:
    """List the files of a folder and of its subfolders: path → file.

    Raises:
        InputError: it is no folder, is malformed, holds a name that would lead elsewhere, or is too large.
        ContentNotFound, ContentMismatch, ContentUnavailable: as `ContentStore.get`.
    """
    found: dict[str, Cid] = {}
    entries = characters = 0
    level = [("", cid, False)]
    for _ in range(MAX_DEPTH):
        if not level:
            return found
        deeper: list[tuple[str, Cid, bool]] = []
        blocks = store.get_many([each for _, each, _ in level])
        places = iter(level)
        async for block in blocks:
            path, _, within = next(places)
            entries += 1
            node = decode_node(block.data) if block.cid.codec == DAG_PB else None
            message = decode_unixfs(node.data) if node is not None else None
            if node is None or message is None or message.kind not in (DIRECTORY, HAMT_SHARD):
                if not path or within:
                    raise InputError(f"{block.cid} is not a folder")
                _add_entry(found, path, block.cid)
                continue
            prefix = _prefix(message.fanout) if message.kind == HAMT_SHARD else 0
            for link in node.links:
                if (entries := entries + 1) > MAX_ENTRIES:
                    raise InputError(f"the folder {cid} has more than {MAX_ENTRIES} entries")
                name = link.name[prefix:]
                if prefix and not name and len(link.name) == prefix:
                    deeper.append((path, link.cid, True))
                    continue
                below = f"{path}/{_checked_name(name)}" if path else _checked_name(name)
                if (characters := characters + len(below)) > MAX_LISTING_CHARACTERS:
                    raise InputError(f"the paths in the folder {cid} are too long to be listed")
                if link.cid.codec == RAW:
                    _add_entry(found, below, link.cid)
                else:
                    deeper.append((below, link.cid, False))
        level = deeper
    raise InputError(f"the folder {cid} is deeper than {MAX_DEPTH} levels")


def _add_entry(found: dict[str, Cid], path: str, cid: Cid) -> None:
    if path in found:
        raise InputError(f"the folder names {path!r} twice")
    found[path] = cid


def _prefix(fanout: int | None) -> int:
    if fanout is None or not 2 <= fanout <= 1024 or fanout & (fanout - 1):
        raise InputError(f"a sharded folder with a fanout of {fanout}")
    return len(f"{fanout - 1:X}")


async def read_folder(store: ContentStore, cid: Cid, folder: Path) -> dict[str, Cid]:
    """Write a folder's files to a new folder: to `folder.partial` first, renamed when it is whole.

    Returns: the listing, as `list_folder`.

    Raises:
        ConfigurationError: the folder is there already, or cannot be written.
        InputError, ContentNotFound, ContentMismatch, ContentUnavailable: as `list_folder` and `read_file`.
    """
    if await asyncio.to_thread(folder.exists):
        raise ConfigurationError(f"{folder} is there already", hint="choose a folder that does not exist")
    listing = await list_folder(store, cid)
    partial = folder.with_name(folder.name + ".partial")
    try:
        await asyncio.to_thread(shutil.rmtree, partial, ignore_errors=True)
        await asyncio.to_thread(partial.mkdir, parents=True)
        leaves = [(path, file) for path, file in listing.items() if file.codec == RAW]
        places = iter(leaves)
        batch: list[tuple[Path, bytes]] = []
        async for block in store.get_many([file for _, file in leaves]):
            batch.append((partial / next(places)[0], block.data))
            if len(batch) >= _WRITE_AT_ONCE:
                await asyncio.to_thread(_write_leaves, batch)
                batch = []
        await asyncio.to_thread(_write_leaves, batch)
        for path, file in listing.items():
            if file.codec != RAW:
                (partial / path).parent.mkdir(parents=True, exist_ok=True)
                await read_file(store, file, partial / path)
        await asyncio.to_thread(partial.rename, folder)
    except OSError as error:
        await asyncio.to_thread(shutil.rmtree, partial, ignore_errors=True)
        raise write_error(folder, error) from error
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return listing


def _write_leaves(files: Sequence[tuple[Path, bytes]]) -> None:
    for path, data in files:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


async def tree_blocks(store: ContentStore, root: Cid) -> AsyncIterator[Cid]:
    """Give every block that `root` reaches by dag-pb and dag-cbor links, itself first, each once.

    Only blocks that can link are read; a raw block is named without a look at whether it is there. Memory
    grows with the number of blocks (about 100 bytes each).

    Raises:
        InputError: a block is malformed.
        ContentNotFound, ContentMismatch, ContentUnavailable: as `ContentStore.get`.
    """
    seen = {root}
    level: Sequence[Cid] = [root]
    yield root
    while level:
        deeper: list[Cid] = []
        async for block in store.get_many([cid for cid in level if cid.codec != RAW]):
            for cid in links(block.cid, block.data):
                if cid not in seen:
                    seen.add(cid)
                    yield cid
                    if cid.codec != RAW:
                        deeper.append(cid)
        level = deeper
