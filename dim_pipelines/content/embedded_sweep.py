"""The collection of an embedded store: mark what the pins reach, then sweep what is old and unmarked.

It runs beside writers of any number of processes. The marks lie in a temporary table on disk, so memory
stays small with millions of blocks.
"""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path
from typing import Final

from dim_pipelines.content.embedded_folder import locked
from dim_pipelines.content.embedded_shelf import Shelf, pins_counter
from dim_pipelines.content.links import links
from dim_pipelines.content.store import Collected
from dim_pipelines.domain.cid import RAW, Cid
from dim_pipelines.errors import ContentMismatch, ContentNotFound

_BATCH: Final = 1000
"""Blocks that are hidden or removed in one transaction, so that writers wait for milliseconds."""
_LEFTOVER_S: Final = 3600.0
"""How old a file without a row must be at least: a writer that lives is done with it much sooner."""

_ALONE, _TODO, _DONE = 0, 1, 2
"""A mark's state: pinned without its links, links to be followed, links followed."""


def sweep(folder: Path, now_ms: int, grace_s: float) -> Collected:
    """Drop ended pins and then what no pin reaches and is older than the grace.

    Raises:
        ContentMismatch: a block below a pin is damaged, so that nobody knows what it linked to; nothing more
            was dropped.
    """
    with locked(folder / "collect.lock"):
        shelf = Shelf(folder)
        try:
            with shelf.writing() as connection:
                connection.execute("DELETE FROM pins WHERE expires_ms <= ?", (now_ms,))
            _Marks(shelf).hide(now_ms - round(grace_s * 1000))
            collected = _remove(shelf)
            _remove_leftovers(shelf, now_ms / 1000 - max(grace_s, _LEFTOVER_S))
            _give_space_back(shelf.connection)
            return collected
        finally:
            shelf.close()


class _Marks:
    """Which blocks the pins reach, and the pins' counter at which that was true."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        self._connection = shelf.connection
        self._connection.execute("CREATE TEMP TABLE marks (cid BLOB PRIMARY KEY, state INTEGER) WITHOUT ROWID")
        self._connection.execute("CREATE INDEX temp.marks_todo ON marks (cid) WHERE state = 1")
        self._counter = -1

    def _mark(self) -> None:
        connection = self._connection
        self._counter = pins_counter(connection)
        connection.execute(
            "INSERT INTO marks SELECT root, max(recursive) FROM pins GROUP BY root"
            " ON CONFLICT DO UPDATE SET state = 1 WHERE state = 0 AND excluded.state = 1"
        )
        while True:
            query = connection.execute("SELECT cid FROM marks WHERE state = ? LIMIT ?", (_TODO, _BATCH))
            if not (todo := [Cid(raw) for (raw,) in query]):
                return
            connection.execute("BEGIN")  # of the temporary table alone: it holds no lock of the folder
            for cid in todo:
                connection.executemany(
                    "INSERT INTO marks VALUES (?, ?) ON CONFLICT DO UPDATE SET state = excluded.state WHERE state = 0",
                    ((link, _DONE if link.codec == RAW else _TODO) for link in self._links(cid)),
                )
                connection.execute("UPDATE marks SET state = ? WHERE cid = ?", (_DONE, cid))
            connection.execute("COMMIT")

    def _links(self, cid: Cid) -> list[Cid]:
        if cid.codec == RAW:
            return []
        try:
            return links(cid, self._shelf.read(cid))
        except ContentNotFound:
            return []  # gone from under its pin; what it linked to cannot be known, nor can it come from here
        except ContentMismatch as error:
            raise ContentMismatch(
                f"{error.message}; a pin holds it, so nothing was collected",
                hint="put the block again from another store, or drop its pin",
            ) from error

    def hide(self, newest_ms: int) -> None:
        """Hide every unmarked block that was added at or before `newest_ms`."""
        self._mark()
        connection = self._connection
        last = b""
        while True:
            rows = connection.execute(
                "SELECT cid FROM blocks WHERE cid > ? AND added_ms <= ? AND gone = 0"
                " AND cid NOT IN (SELECT cid FROM marks) ORDER BY cid LIMIT ?",
                (last, newest_ms, _BATCH),
            ).fetchall()
            if not rows:
                return
            with self._shelf.writing():
                changed = pins_counter(connection) != self._counter
                if not changed:
                    connection.executemany(
                        "UPDATE blocks SET gone = 1 WHERE cid = ? AND added_ms <= ?",
                        ((cid, newest_ms) for (cid,) in rows),
                    )
            if changed:
                self._mark()  # and look at these rows again
            else:
                last = rows[-1][0]


def _remove(shelf: Shelf) -> Collected:
    blocks = total = 0
    while True:
        with shelf.writing() as connection:
            rows = connection.execute("SELECT cid, size, row FROM blocks WHERE gone = 1 LIMIT ?", (_BATCH,)).fetchall()
            for cid, size, row in rows:
                if row is None:
                    shelf.path(Cid(cid)).unlink(missing_ok=True)
                else:
                    connection.execute("DELETE FROM bytes WHERE row = ?", (row,))
                connection.execute("DELETE FROM blocks WHERE cid = ?", (cid,))
                blocks += 1
                total += size
        if not rows:
            return Collected(blocks, total)


def _give_space_back(connection: sqlite3.Connection) -> None:
    """Shorten the database by the pages that are free now, some at a time because each time locks writers out."""
    free = -1
    while (left := connection.execute("PRAGMA freelist_count").fetchone()[0]) not in (0, free):
        free = left
        # As a script: the statement frees a page per step, and `execute` takes one step only.
        connection.executescript(f"PRAGMA incremental_vacuum({_BATCH});")


def _remove_leftovers(shelf: Shelf, oldest_s: float) -> None:
    """Remove files that killed processes left behind."""
    for path in (shelf.folder / "incoming").iterdir():
        if _older(path, oldest_s):
            path.unlink(missing_ok=True)
    for path in (shelf.folder / "files").glob("*/*"):
        if _older(path, oldest_s) and not _has_row(shelf.connection, path):
            with shelf.writing() as connection:
                if not _has_row(connection, path):
                    path.unlink(missing_ok=True)


def _older(path: Path, oldest_s: float) -> bool:
    try:
        return path.stat().st_mtime <= min(oldest_s, time.time() - _LEFTOVER_S)
    except FileNotFoundError:
        return False


def _has_row(connection: sqlite3.Connection, path: Path) -> bool:
    found = connection.execute("SELECT 1 FROM blocks WHERE cid = ?", (Cid.parse(path.name),)).fetchone()
    return found is not None
