"""One connection's view of an embedded store's folder: the tables, the files, and every statement on them.

Synchronous and used by one thread at a time; `embedded` brings the threads. The layout on disk::

    blocks.db        SQLite, WAL: which blocks there are, the bytes of the small ones, the pins
    files/ab/CID     the bytes of a large block; ab: the last two hex digits of its digest
    incoming/        files that are being written; renamed into `files` when whole
    open.lock        held while the tables are made
    collect.lock     held by the one process that collects
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sqlite3
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from dim_pipelines.content.embedded_folder import BUSY_S, PAGE_BYTES, fsync, syncfs
from dim_pipelines.content.store import Block, Pin
from dim_pipelines.content.verify import check_block
from dim_pipelines.domain.cid import Cid
from dim_pipelines.errors import (
    ContentError,
    ContentMismatch,
    ContentNotFound,
)

SMALL_BYTES: Final = 64 * 1024
"""The largest block that is a row; a larger one is a file (0.06 ms against 0.5 ms for 16 KiB: measured)."""
MAX_LOG_BYTES: Final = 128 << 20
"""How long the write-ahead log may grow before a writer itself moves it into the tables, while others wait."""

_SYNCFS_FROM: Final = 32
"""From this many files on, one `syncfs` (15-50 ms) costs less than an fsync each (0.5-3 ms)."""

_incoming = itertools.count()


class FileVanished(ContentNotFound):
    """The row of a large block is there, but its file is not: a power loss took it, or a person did."""


class Shelf:
    """The blocks and pins of a folder, through one SQLite connection."""

    def __init__(self, folder: Path) -> None:
        """Open the folder; its tables must be there (`prepare`)."""
        self.folder = folder
        self.connection = sqlite3.connect(
            folder / "blocks.db", timeout=BUSY_S, isolation_level=None, check_same_thread=False
        )
        log_pages = MAX_LOG_BYTES // PAGE_BYTES
        for pragma in ("synchronous=NORMAL", "cache_size=-8192", f"wal_autocheckpoint={log_pages}", "temp_store=FILE"):
            self.connection.execute(f"PRAGMA {pragma}")

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()

    def path(self, cid: Cid) -> Path:
        """Say where the file of a large block lies."""
        return self.folder / "files" / cid[-1:].hex() / str(cid)

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """Hold the write lock of the folder for one transaction: all of it, or nothing."""
        self.connection.execute("BEGIN IMMEDIATE")
        try:
            yield self.connection
            self.connection.execute("COMMIT")
        except BaseException:
            if self.connection.in_transaction:  # SQLite itself rolls back when the disk is full
                self.connection.execute("ROLLBACK")
            raise

    def put(self, blocks: Sequence[Block], pin: Pin | None) -> list[Path]:
        """Store verified blocks in one transaction and give the files that hold the large ones."""
        large = {block.cid: block.data for block in blocks if len(block.data) > SMALL_BYTES}
        written: list[Cid] = []
        try:
            for cid, data in large.items():
                if not self._file_is_whole(cid, data) or not self.has(cid):
                    self._write_file(cid, data)
                    written.append(cid)
            with self.writing() as connection:
                for cid, data in large.items():
                    if not self._file_is_whole(cid, data):  # a collection took it since
                        self._write_file(cid, data)
                self._put_rows(connection, blocks)
                if pin is not None:
                    for block in blocks:
                        self._put_pin(connection, block.cid, pin, recursive=False)
                    _count(connection, "pins")
        except BaseException:
            self._take_back(written)
            raise
        return [self.path(cid) for cid in large]

    def _put_rows(self, connection: sqlite3.Connection, blocks: Sequence[Block]) -> None:
        now_ms = time.time_ns() // 1_000_000
        (next_row,) = connection.execute("SELECT coalesce(max(row), 0) + 1 FROM bytes").fetchone()
        for block in blocks:
            found = connection.execute("SELECT gone, row FROM blocks WHERE cid = ?", (block.cid,)).fetchone()
            if found is not None:
                if found[0] and found[1] is not None:
                    connection.execute("UPDATE bytes SET data = ? WHERE row = ?", (block.data, found[1]))
                connection.execute("UPDATE blocks SET gone = 0, added_ms = ? WHERE cid = ?", (now_ms, block.cid))
                continue
            row = None
            if len(block.data) <= SMALL_BYTES:
                row = next_row
                next_row += 1
                connection.execute("INSERT INTO bytes VALUES (?, ?)", (row, block.data))
            connection.execute("INSERT INTO blocks VALUES (?, ?, ?, 0, ?)", (block.cid, len(block.data), now_ms, row))

    def _file_is_whole(self, cid: Cid, data: bytes) -> bool:
        try:
            return self.path(cid).stat().st_size == len(data)
        except FileNotFoundError:
            return False

    def _write_file(self, cid: Cid, data: bytes) -> None:
        path = self.path(cid)
        incoming = self.folder / "incoming" / f"{os.getpid()}-{next(_incoming)}"
        try:
            incoming.write_bytes(data)
            try:
                incoming.replace(path)
            except FileNotFoundError:
                path.parent.mkdir(exist_ok=True)
                incoming.replace(path)
        except BaseException:
            incoming.unlink(missing_ok=True)
            raise

    def _take_back(self, written: Iterable[Cid]) -> None:
        """Remove the files of a put that failed, so that a full disk is not kept full; best effort."""
        try:
            with self.writing():
                for cid in written:
                    if not self.has(cid):
                        self.path(cid).unlink(missing_ok=True)
        except (sqlite3.Error, OSError):
            return  # a collection finds them when they are old

    def read(self, cid: Cid) -> bytes:
        """Read one block, verified.

        Raises:
            ContentNotFound: it is not here.
            ContentMismatch: its bytes are not what its name says.
        """
        found = self.connection.execute(
            "SELECT size, blocks.row, data FROM blocks LEFT JOIN bytes ON bytes.row = blocks.row WHERE cid = ?", (cid,)
        ).fetchone()
        if found is None:
            raise ContentNotFound(f"block {cid} is not in this store")
        size, row, data = found
        if row is None:
            try:
                data = self.path(cid).read_bytes()
            except FileNotFoundError as error:
                raise FileVanished(f"the file of block {cid} is not in this store any more") from error
        return check_block(cid, data, size)

    def read_some(self, cids: Sequence[Cid], budget: int) -> list[Block]:
        """Read blocks in order until `budget` bytes are reached or one cannot be read; at least one.

        Raises: as `read`, for the first block.
        """
        blocks: list[Block] = []
        total = 0
        for cid in cids:
            try:
                blocks.append(Block(cid, self.read(cid)))
            except ContentError:
                if not blocks:
                    raise
                break
            total += len(blocks[-1].data)
            if total >= budget:
                break
        return blocks

    def has(self, cid: Cid) -> bool:
        """Tell whether the block is here and not known to be damaged."""
        return self.connection.execute("SELECT 1 FROM blocks WHERE cid = ? AND gone = 0", (cid,)).fetchone() is not None

    def note_damage(self, cid: Cid) -> None:
        """Hide a block that cannot be read, so that `have` denies it and the next put writes it anew."""
        with self.writing() as connection:  # under the lock, because a put may have mended it since it was read
            try:
                self.read(cid)
            except (ContentMismatch, FileVanished):
                connection.execute("UPDATE blocks SET gone = 1 WHERE cid = ?", (cid,))
                self.path(cid).unlink(missing_ok=True)
            except ContentNotFound:
                return

    def put_pin(self, root: Cid, pin: Pin) -> tuple[int | None, int] | None:
        """Write a recursive pin and give what stood there before: (expires_ms, recursive)."""
        key = (root, pin.owner, pin.label)
        with self.writing() as connection:
            before = connection.execute(
                "SELECT expires_ms, recursive FROM pins WHERE root = ? AND owner = ? AND label = ?", key
            ).fetchone()
            self._put_pin(connection, root, pin, recursive=True)
            _count(connection, "pins")
        return None if before is None else (before[0], before[1])

    def take_pin(self, root: Cid, pin: Pin, before: tuple[int | None, int] | None = None) -> None:
        """Drop a pin, or put back what stood there before it."""
        key = (root, pin.owner, pin.label)
        with self.writing() as connection:
            connection.execute("DELETE FROM pins WHERE root = ? AND owner = ? AND label = ?", key)
            if before is not None:
                connection.execute("INSERT INTO pins VALUES (?, ?, ?, ?, ?)", (*key, *before))

    def _put_pin(self, connection: sqlite3.Connection, root: Cid, pin: Pin, *, recursive: bool) -> None:
        connection.execute(
            "INSERT INTO pins VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE"
            " SET expires_ms = excluded.expires_ms, recursive = max(recursive, excluded.recursive)",
            (root, pin.owner, pin.label, pin.expires_ms, recursive),
        )

    def pins(self, label_prefix: str) -> list[tuple[Cid, Pin]]:
        """List pins by the beginning of their label."""
        rows = self.connection.execute(
            "SELECT root, owner, label, expires_ms FROM pins WHERE label >= ? AND label < ?",
            (label_prefix, label_prefix + "\U0010ffff"),
        )
        return [(Cid(root), Pin(owner, label, expires_ms)) for root, owner, label, expires_ms in rows]

    def checkpoint(self) -> None:
        """Move what is in the write-ahead log into the tables as far as that holds nobody up."""
        self.connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    def sync(self, paths: Collection[Path]) -> None:
        """Return once these files, and every row committed by anybody, survive a loss of power."""
        if len(paths) < _SYNCFS_FROM or not syncfs(self.folder):
            for path in paths:
                with contextlib.suppress(FileNotFoundError):  # swept since
                    fsync(path)
            for folder in sorted({path.parent for path in paths}):
                fsync(folder)
        self.connection.execute("PRAGMA synchronous=FULL")
        try:
            with self.writing() as connection:
                _count(connection, "syncs")
        finally:
            self.connection.execute("PRAGMA synchronous=NORMAL")


def pins_counter(connection: sqlite3.Connection) -> int:
    """Give the number that every new pin raises."""
    (value,) = connection.execute("SELECT value FROM counters WHERE name = 'pins'").fetchone()
    return int(value)


def _count(connection: sqlite3.Connection, name: str) -> None:
    connection.execute("UPDATE counters SET value = value + 1 WHERE name = ?", (name,))
