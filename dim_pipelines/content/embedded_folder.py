"""The folder of an embedded store: how it is made, locked and made durable, and what its errors mean."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from dim_pipelines.errors import ConfigurationError, ContentError, ContentUnavailable

BUSY_S: Final = 60.0
"""How long a statement waits for another process's write."""
SCHEMA_VERSION: Final = 1
PAGE_BYTES: Final = 8192

_SCHEMA: Final = """
CREATE TABLE blocks (
    cid BLOB NOT NULL PRIMARY KEY,
    size INTEGER NOT NULL,
    added_ms INTEGER NOT NULL,
    gone INTEGER NOT NULL,      -- 1: being swept, or found damaged; as good as absent, and the next put mends it
    row INTEGER                 -- of `bytes`; NULL: a file
) WITHOUT ROWID;
CREATE INDEX blocks_gone ON blocks (cid) WHERE gone = 1;
CREATE TABLE bytes (row INTEGER PRIMARY KEY, data BLOB NOT NULL);
CREATE TABLE pins (
    root BLOB NOT NULL,
    owner TEXT NOT NULL,
    label TEXT NOT NULL,
    expires_ms INTEGER,
    recursive INTEGER NOT NULL, -- 0: the block alone; 1: everything that it reaches
    PRIMARY KEY (root, owner, label)
) WITHOUT ROWID;
CREATE INDEX pins_label ON pins (label);
CREATE TABLE counters (name TEXT NOT NULL PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
INSERT INTO counters VALUES ('pins', 0), ('syncs', 0);
"""

_FULL_ERRNOS: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@contextmanager
def storage_errors(folder: Path) -> Iterator[None]:
    """Turn what SQLite and the file system raise into DIM's errors."""
    full = f"no space left in the content store at {folder}"
    hint = "free disk space, or drop what is not held any more: dim gc"
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code == sqlite3.SQLITE_FULL or (code == sqlite3.SQLITE_IOERR and _free_bytes(folder) < 1 << 20):
            raise ContentUnavailable(full, hint=hint) from error
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise ContentUnavailable(f"the content store at {folder} is busy with another process") from error
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            raise ContentError(
                f"the content store at {folder} is damaged: {error}",
                hint="move the folder away; what other stores hold can be fetched again",
            ) from error
        raise ContentUnavailable(f"the content store at {folder} cannot be used: {error}") from error
    except OSError as error:
        if error.errno in _FULL_ERRNOS:
            raise ContentUnavailable(full, hint=hint) from error
        raise ContentUnavailable(
            f"the content store at {folder} cannot be used: {error.strerror or error}",
            hint="DIM_HOME must be a folder on this machine that you may write",
        ) from error


def prepare(folder: Path) -> None:
    """Make the folder and its tables where they are not there yet.

    Raises:
        ConfigurationError: a newer DIM made them.
    """
    for each in (folder, folder / "files", folder / "incoming"):
        each.mkdir(parents=True, exist_ok=True)
    with locked(folder / "open.lock"):
        connection = sqlite3.connect(folder / "blocks.db", timeout=BUSY_S, isolation_level=None)
        try:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version == 0:
                connection.execute(f"PRAGMA page_size={PAGE_BYTES}")
                connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
                connection.execute("PRAGMA journal_mode=WAL")
                connection.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version={SCHEMA_VERSION}; COMMIT;")
                for each in (folder, folder.parent):
                    fsync(each)
            elif version > SCHEMA_VERSION:
                raise ConfigurationError(
                    f"the content store at {folder} has version {version}, this DIM reads {SCHEMA_VERSION}",
                    hint="update DIM",
                )
        finally:
            connection.close()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an advisory lock on a file; it ends with the process that holds it."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def fsync(path: Path) -> None:
    """Make a file or folder durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def syncfs(folder: Path) -> bool:
    """Make everything in the folder's file system durable; False where the system has no such call."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "syncfs"):
        return False
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if libc.syncfs(descriptor) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
    finally:
        os.close(descriptor)
    return True


def _free_bytes(folder: Path) -> int:
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize
