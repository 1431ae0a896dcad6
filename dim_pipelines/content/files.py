"""Files as blocks: the same CIDs as `ipfs add --cid-version=1 --raw-leaves`, over any store.

A file is cut into chunks of 256 KiB; leaves are raw; each inner node links up to 174 parts; a file of one
chunk is its leaf. Source: https://specs.ipfs.tech/unixfs/ and Kubo 0.43, against which the tests compare.
What is read may have been made by an attacker: sizes are claims until the bytes are there and depth is
bounded, so bad content ends as InputError or ContentMismatch.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Final

from dim_pipelines.content.dag_pb import (
    FILE,
    RAW_NODE,
    Link,
    Node,
    UnixFs,
    decode_node,
    decode_unixfs,
    encode_file,
    encode_node,
)
from dim_pipelines.content.store import Block, ContentStore, Pin
from dim_pipelines.domain.cid import DAG_PB, RAW, Cid
from dim_pipelines.errors import ConfigurationError, ContentUnavailable, InputError

CHUNK_BYTES: Final = 256 * 1024
"""Bytes of a leaf."""
MAX_LINKS: Final = 174
"""Links of an inner node of a file."""
MAX_DEPTH: Final = 32
"""Levels of a file or folder that is read; a file of this layout needs 5 for 2 PiB."""
MAX_READ_BYTES: Final = 1 << 30
"""What `read_bytes` takes into memory when the caller sets no limit."""
BATCH_BYTES: Final = 4 << 20
"""Bytes that travel to the store in one call; two such batches are in memory at a time."""
BATCH_BLOCKS: Final = 256
"""Blocks that travel to the store in one call."""

Progress = Callable[[int], None]
"""Is told how many bytes are done so far."""


class FileTree:
    """Builds the tree of one file while its chunks go by; holds at most 174 links per level."""

    def __init__(self) -> None:
        self._levels: list[list[tuple[Link, int]]] = [[]]
        self.size = 0
        """File bytes so far."""

    def add(self, chunk: bytes) -> Iterator[Block]:
        """Take the next chunk and give the blocks that are complete by now."""
        leaf = Block(Cid.of(RAW, chunk), chunk)
        self.size += len(chunk)
        yield leaf
        yield from self._link(0, Link(leaf.cid, "", len(chunk)), len(chunk))

    def finish(self) -> Iterator[Block]:
        """Give the remaining blocks; `root` is known afterwards. An empty file is one empty leaf."""
        if not self._levels[0]:
            yield from self.add(b"")
        level = 0
        while level + 1 < len(self._levels) or len(self._levels[level]) > 1:
            yield from self._close(level)
            level += 1

    @property
    def root(self) -> Link:
        """The file, with its cumulative size, once `finish` has run out."""
        return self._levels[-1][0][0]

    def _link(self, level: int, link: Link, size: int) -> Iterator[Block]:
        # A full level is closed only when one more arrives: exactly 174 links are one node, not a node under another.
        if len(self._levels[level]) == MAX_LINKS:
            yield from self._close(level)
        self._levels[level].append((link, size))

    def _close(self, level: int) -> Iterator[Block]:
        children = self._levels[level]
        self._levels[level] = []
        sizes = [size for _, size in children]
        data = encode_node([link for link, _ in children], encode_file(sum(sizes), sizes))
        block = Block(Cid.of(DAG_PB, data), data)
        yield block
        if level + 1 == len(self._levels):
            self._levels.append([])
        total = len(data) + sum(link.size for link, _ in children)
        yield from self._link(level + 1, Link(block.cid, "", total), sum(sizes))


def file_blocks(chunks: Iterable[bytes]) -> Iterator[Block]:
    """Give the blocks of a file from its chunks of 256 KiB (the last one may be shorter); the root is last."""
    tree = FileTree()
    for chunk in chunks:
        yield from tree.add(chunk)
    yield from tree.finish()


def chunked(data: bytes) -> Iterator[bytes]:
    """Cut bytes into chunks of 256 KiB."""
    return (data[start : start + CHUNK_BYTES] for start in range(0, len(data), CHUNK_BYTES))


class BlockBatch:
    """Collects blocks for a store and hands them over in batches of bounded size."""

    def __init__(self, store: ContentStore) -> None:
        self._store = store
        self._blocks: list[Block] = []
        self._bytes = 0

    async def add(self, blocks: Iterable[Block]) -> None:
        """Take blocks; store what has gathered when it is enough."""
        for block in blocks:
            self._blocks.append(block)
            self._bytes += len(block.data)
            if self._bytes >= BATCH_BYTES or len(self._blocks) >= BATCH_BLOCKS:
                await self.flush()

    async def flush(self) -> None:
        """Store what has gathered."""
        blocks, self._blocks, self._bytes = self._blocks, [], 0
        if blocks:
            await self._store.put(blocks)


async def add_bytes(store: ContentStore, data: bytes, *, pin: Pin | None = None) -> Cid:
    """Add bytes as a file.

    Raises:
        ContentUnavailable: the store cannot take it.
    """
    batch, tree = BlockBatch(store), FileTree()
    for chunk in chunked(data):
        await batch.add(tree.add(chunk))
    return await _finish(store, batch, tree, pin)


async def add_file(store: ContentStore, path: Path, *, pin: Pin | None = None, progress: Progress | None = None) -> Cid:
    """Add a file of any size in constant memory.

    Raises:
        InputError: the file is missing or cannot be read.
        ContentUnavailable: the store cannot take it.
    """
    batch, tree = BlockBatch(store), FileTree()
    await add_stream(batch, tree, path, progress)
    return await _finish(store, batch, tree, pin)


async def _finish(store: ContentStore, batch: BlockBatch, tree: FileTree, pin: Pin | None) -> Cid:
    await batch.add(tree.finish())
    await batch.flush()
    root = tree.root.cid
    if pin is not None:
        await store.pin(root, pin)
    return root


async def add_stream(batch: BlockBatch, tree: FileTree, path: Path, progress: Progress | None = None) -> None:
    """Send a file's blocks through `batch` as `tree` makes them; `finish` is left to the caller.

    Raises:
        InputError: the file is missing or cannot be read.
    """
    try:
        with await asyncio.to_thread(path.open, "rb", buffering=0) as file:

            def read() -> list[Block]:
                data = bytearray()
                while len(data) < BATCH_BYTES and (part := file.read(BATCH_BYTES - len(data))):
                    data += part
                return [block for chunk in chunked(bytes(data)) for block in tree.add(chunk)]

            while blocks := await asyncio.to_thread(read):
                await batch.add(blocks)
                if progress is not None:
                    progress(tree.size)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error


async def file_size(store: ContentStore, cid: Cid) -> int:
    """Tell how many bytes the file says it has.

    Raises:
        InputError: it is not a file.
    """
    return _size(cid, await store.get(cid))


async def read_bytes(store: ContentStore, cid: Cid, *, limit: int | None = None) -> bytes:
    """Read a file into memory.

    Args:
        store: where it lies.
        cid: the file.
        limit: the most bytes to take; `MAX_READ_BYTES` when left out.

    Raises:
        InputError: it is no file, is malformed, or is larger than the limit.
        ContentNotFound, ContentMismatch, ContentUnavailable: as `ContentStore.get`.
    """
    most = MAX_READ_BYTES if limit is None else limit
    root = await store.get(cid)
    if (size := _size(cid, root)) > most:
        raise InputError(f"{cid} has {size} bytes, more than the {most} that are taken here")
    async with aclosing(_parts(store, Block(cid, root), size, 0)) as parts:
        return b"".join([part async for part in parts])


async def read_file(store: ContentStore, cid: Cid, path: Path, progress: Progress | None = None) -> int:
    """Write a file's bytes to `path` in constant memory: to `path.partial` first, renamed when it is whole.

    Returns: the number of bytes.

    Raises:
        InputError: it is no file or is malformed.
        ConfigurationError: the path cannot be written.
        ContentUnavailable: there is no space for it.
        ContentNotFound, ContentMismatch: as `ContentStore.get`.
    """
    root = await store.get(cid)
    size = _size(cid, root)
    partial = path.with_name(path.name + ".partial")
    done = 0
    try:
        with await asyncio.to_thread(partial.open, "wb", buffering=0) as file:
            async with aclosing(_parts(store, Block(cid, root), size, 0)) as parts:
                async for part in parts:
                    await asyncio.to_thread(_write_all, file.write, part)
                    done += len(part)
                    if progress is not None:
                        progress(done)
        await asyncio.to_thread(partial.replace, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise write_error(path, error) from error
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    return done


def write_error(path: Path, error: OSError) -> ContentUnavailable | ConfigurationError:
    """Say in DIM's words why a path could not be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return ContentUnavailable(f"no space left to write {path}", hint="free space, or choose another place")
    return ConfigurationError(f"cannot write {path}: {error.strerror or error}", hint="choose a folder you may write")


def _write_all(write: Callable[[memoryview], int | None], data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[write(rest) or 0 :]


def _size(cid: Cid, block: bytes) -> int:
    if cid.codec == RAW:
        return len(block)
    node, message = file_node(cid, block)
    return _checked_size(cid, node, message)


def file_node(cid: Cid, block: bytes) -> tuple[Node, UnixFs]:
    """Read an inner node of a file.

    Raises:
        InputError: it is something else.
    """
    if cid.codec != DAG_PB:
        raise InputError(f"{cid} is not a file")
    node = decode_node(block)
    message = decode_unixfs(node.data)
    if message.kind not in (FILE, RAW_NODE):
        raise InputError(f"{cid} is a folder or a link, not a file")
    return node, message


def _checked_size(cid: Cid, node: Node, message: UnixFs) -> int:
    total = len(message.data) + sum(message.block_sizes)
    stated = total if message.size is None else message.size
    if stated != total or len(node.links) != len(message.block_sizes) or 0 in message.block_sizes:
        # Empty parts are refused because a tree of nothing but them would be walked for ever without a byte.
        raise InputError(f"the file node {cid} contradicts itself about its size")
    return total


async def _parts(store: ContentStore, block: Block, size: int, depth: int) -> AsyncGenerator[bytes, None]:
    """Give the bytes below one node; the caller has been promised `size` of them."""
    if block.cid.codec == RAW:
        if len(block.data) != size:
            raise InputError(f"the leaf {block.cid} has {len(block.data)} bytes where its parent says {size}")
        yield block.data
        return
    node, message = file_node(block.cid, block.data)
    if _checked_size(block.cid, node, message) != size:
        raise InputError(f"the file node {block.cid} has another size than its parent says")
    if depth >= MAX_DEPTH:
        raise InputError(f"the file is deeper than {MAX_DEPTH} levels at {block.cid}")
    if message.data:
        yield message.data
    children = store.get_many([link.cid for link in node.links])
    sizes = iter(message.block_sizes)
    async for child in children:
        async with aclosing(_parts(store, child, next(sizes), depth + 1)) as parts:
            async for part in parts:
                yield part
