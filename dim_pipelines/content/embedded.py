"""The content store in a folder: small blocks as SQLite rows, large ones as files, no server.

Several processes may use one folder at once. How it stays whole:

- A block is there when its row in `blocks` is committed; a file is renamed into place before that, so nobody
  sees a part of one. A file without a row is left over from a killed process and is swept when it is old.
- Commits survive the death of the process (SQLite WAL); `sync` makes them survive the loss of power: it
  fsyncs the files and folders written since the last time and then commits once with `synchronous=FULL`,
  which fsyncs the log with everything before it.
- A collection marks from the pins, then hides rows, then removes them, each under the write lock and only
  while the pins are those that it marked from; `put` looks again under the same lock that the files of the
  blocks it found are still there.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, Self, TypeVar

from dim_pipelines.content.embedded_folder import prepare, storage_errors
from dim_pipelines.content.embedded_shelf import SMALL_BYTES, FileVanished, Shelf
from dim_pipelines.content.embedded_sweep import sweep
from dim_pipelines.content.links import links
from dim_pipelines.content.store import COLLECT_GRACE_S, Block, Collected, Pin
from dim_pipelines.content.verify import check_blocks
from dim_pipelines.domain.cid import RAW, Cid
from dim_pipelines.errors import ContentError, ContentMismatch, ContentNotFound, ContentUnavailable

_READERS: Final = 3
_READ_AHEAD_BLOCKS: Final = 64
_READ_AHEAD_BYTES: Final = 4 << 20
_CHECKPOINT_BYTES: Final = 16 << 20

_log = logging.getLogger(__name__)

T = TypeVar("T")


class EmbeddedContentStore:
    """Blocks and pins in a folder of this machine. Make one with `open`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="dim-store-write")
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="dim-store-read")
        self._keeper = ThreadPoolExecutor(1, thread_name_prefix="dim-store-checkpoint")
        self._local = threading.local()
        self._shelves: list[Shelf] = []
        self._unsynced: set[Path] = set()
        self._logged_bytes = 0
        self._closed = False

    @classmethod
    async def open(cls, folder: Path) -> Self:
        """Open the store in `folder`, which is made where it is missing.

        Raises:
            ContentUnavailable: the folder cannot be used.
            ConfigurationError: a newer DIM made it.
        """

        def prepare_folder() -> None:
            with storage_errors(folder):
                prepare(folder)

        await asyncio.to_thread(prepare_folder)
        return cls(folder)

    @property
    def swarm(self) -> str:
        """Empty: the blocks are its own."""
        return ""

    async def put(self, blocks: Sequence[Block], *, pin: Pin | None = None) -> None:
        """Store blocks in one transaction: see `ContentStore.put`."""

        def put(shelf: Shelf) -> None:
            check_blocks(blocks)
            self._unsynced.update(shelf.put(blocks, pin))
            self._logged_bytes += sum(len(block.data) for block in blocks if len(block.data) <= SMALL_BYTES)
            if self._logged_bytes >= _CHECKPOINT_BYTES:
                self._logged_bytes = 0
                self._keeper.submit(self._checkpoint)

        await self._write(put)

    async def get(self, cid: Cid) -> bytes:
        """Read one block: see `ContentStore.get`."""
        return (await self._verified(lambda shelf: [Block(cid, shelf.read(cid))], cid))[0].data

    async def get_many(self, cids: Sequence[Cid]) -> AsyncGenerator[Block, None]:
        """Read blocks in order, the next few MiB while the caller uses the last: see `ContentStore.get_many`."""
        ahead: asyncio.Task[list[Block]] | None = None
        done = 0

        def read(start: int) -> asyncio.Task[list[Block]]:
            window = cids[start : start + _READ_AHEAD_BLOCKS]
            return asyncio.ensure_future(
                self._verified(lambda shelf: shelf.read_some(window, _READ_AHEAD_BYTES), window[0])
            )

        try:
            while done < len(cids):
                blocks = await (ahead or read(done))
                done += len(blocks)
                ahead = read(done) if done < len(cids) else None
                for block in blocks:
                    yield block
        finally:
            if ahead is not None and not ahead.done():
                ahead.cancel()
            if ahead is not None:
                await asyncio.wait([ahead])
                if not ahead.cancelled():
                    ahead.exception()  # nobody asked for these blocks in the end

    async def have(self, cids: Sequence[Cid]) -> frozenset[Cid]:
        """Tell which blocks are here and whole as far as is known."""
        return await self._read(lambda shelf: frozenset(cid for cid in cids if shelf.has(cid)))

    async def pin(self, root: Cid, pin: Pin) -> None:
        """Hold everything below `root`: see `ContentStore.pin`."""
        # The pin stands before the walk: a collection that starts later knows it, one that runs marks again.
        before = await self._write(lambda shelf: shelf.put_pin(root, pin))
        try:
            await self._read(lambda shelf: _check_reach(shelf, root))
        except BaseException:
            await self._write(lambda shelf: shelf.take_pin(root, pin, before))
            raise

    async def unpin(self, root: Cid, pin: Pin) -> None:
        """Drop a pin: see `ContentStore.unpin`."""
        await self._write(lambda shelf: shelf.take_pin(root, pin))

    async def pins(self, label_prefix: str = "") -> list[tuple[Cid, Pin]]:
        """List the pins whose label begins with `label_prefix`."""
        return await self._read(lambda shelf: shelf.pins(label_prefix))

    async def collect(self, now_ms: int, grace_s: float = COLLECT_GRACE_S) -> Collected:
        """Drop ended pins and what nothing holds: see `ContentStore.collect`.

        Raises:
            ContentMismatch: a block below a pin is damaged; nothing was dropped.
        """
        self._check_open()

        def collect() -> Collected:
            with storage_errors(self._folder):
                return sweep(self._folder, now_ms, grace_s)

        return await asyncio.to_thread(collect)

    async def sync(self) -> None:
        """Make everything put so far survive a loss of power."""

        def sync(shelf: Shelf) -> None:
            paths = set(self._unsynced)
            shelf.sync(paths)
            self._unsynced -= paths

        await self._write(sync)

    async def close(self) -> None:
        """Let what is under way finish and close the files; twice is once."""
        self._closed = True

        def close() -> None:
            for threads in (self._readers, self._writer, self._keeper):
                threads.shutdown()
            while self._shelves:
                self._shelves.pop().close()

        await asyncio.to_thread(close)

    async def _verified(self, read: Callable[[Shelf], list[Block]], cid: Cid) -> list[Block]:
        """Read; `cid` is the block whose damage makes the reading fail."""
        try:
            return await self._read(read)
        except (ContentMismatch, FileVanished):
            await self._write(lambda shelf: shelf.note_damage(cid))
            raise

    async def _read(self, work: Callable[[Shelf], T]) -> T:
        return await self._run(self._readers, work)

    async def _write(self, work: Callable[[Shelf], T]) -> T:
        return await self._run(self._writer, work)

    async def _run(self, threads: ThreadPoolExecutor, work: Callable[[Shelf], T]) -> T:
        self._check_open()

        def run() -> T:
            with storage_errors(self._folder):
                return work(self._shelf())

        return await asyncio.get_running_loop().run_in_executor(threads, run)

    def _checkpoint(self) -> None:
        # In a thread of its own, because it waits for the disk: a put would stand still for 0.2 s (measured).
        try:
            with storage_errors(self._folder):
                self._shelf().checkpoint()
        except ContentError as error:
            _log.warning("the log of the content store was not moved into its tables: %s", error.message)

    def _shelf(self) -> Shelf:
        """Give the connection of this thread."""
        shelf: Shelf | None = getattr(self._local, "shelf", None)
        if shelf is None:
            shelf = self._local.shelf = Shelf(self._folder)
            self._shelves.append(shelf)
        return shelf

    def _check_open(self) -> None:
        if self._closed:
            raise ContentUnavailable("the content store is closed")


def _check_reach(shelf: Shelf, root: Cid) -> None:
    todo = [root]
    seen = {root}
    while todo:
        cid = todo.pop()
        if not shelf.has(cid):
            raise ContentNotFound(f"block {cid} below {root} is not in this store")
        if cid.codec == RAW:
            continue
        for link in links(cid, shelf.read(cid)):
            if link.codec == RAW:
                if not shelf.has(link):
                    raise ContentNotFound(f"block {link} below {root} is not in this store")
            elif link not in seen:
                seen.add(link)
                todo.append(link)
