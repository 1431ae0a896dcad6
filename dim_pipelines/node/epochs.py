"""The highest epoch seen of each batch, durable: a run that was overtaken is refused, after a restart too.

A small SQLite file of the daemon's own. An entry is forgotten a day after its grant has ended: no grant of
a lower epoch can be valid by then.
"""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path
from typing import Final

from dim_pipelines.domain.grant import Grant
from dim_pipelines.errors import ConfigurationError, NodeBusy, StaleEpoch

REMEMBERED_MS: Final = 24 * 3600 * 1000
"""How long after a grant's end its epoch is kept, in milliseconds."""


class Epochs:
    """Call it from any thread; calls take turns, a few milliseconds each (one synced write)."""

    def __init__(self, path: Path) -> None:
        """Open the file, or make it.

        Raises:
            ConfigurationError: it cannot be opened or is no such file.
        """
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._database = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=5.0)
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = FULL")
            self._database.execute(
                "CREATE TABLE IF NOT EXISTS epochs (network TEXT, batch TEXT, epoch INTEGER NOT NULL, "
                "forget_ms INTEGER NOT NULL, PRIMARY KEY (network, batch)) WITHOUT ROWID"
            )
        except (OSError, sqlite3.Error) as error:
            raise ConfigurationError(f"cannot open {path}: {error}") from error

    def claim(self, grant: Grant, now_ms: int) -> None:
        """Store the grant's epoch as the batch's highest; the same one again is fine.

        Raises:
            StaleEpoch: a higher one was seen.
            NodeBusy: the file cannot be written at the moment: the disk is full, or another program holds it.
            ConfigurationError: the epoch is no number that the file can hold.
        """
        try:
            with self._lock:
                row = self._stored(grant, now_ms)
        except OverflowError as error:
            raise ConfigurationError(f"cannot store the epoch of batch {grant.batch}: {error}") from error
        except sqlite3.Error as error:
            raise NodeBusy(f"the node cannot store the epoch of batch {grant.batch}: {error}") from error
        if row > grant.epoch:
            raise StaleEpoch(f"batch {grant.batch} is at epoch {row}, this run has {grant.epoch}")

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._database.close()

    def _stored(self, grant: Grant, now_ms: int) -> int:
        """Store the epoch and give the highest, all of it or nothing."""
        self._database.execute("BEGIN IMMEDIATE")
        try:
            self._database.execute("DELETE FROM epochs WHERE forget_ms <= ?", (now_ms,))
            (highest,) = self._database.execute(
                "INSERT INTO epochs VALUES (?, ?, ?, ?) ON CONFLICT (network, batch) DO UPDATE SET "
                "epoch = max(epoch, excluded.epoch), forget_ms = max(forget_ms, excluded.forget_ms) "
                "RETURNING epoch",
                (grant.network, grant.batch, grant.epoch, grant.not_after_ms + REMEMBERED_MS),
            ).fetchone()
            self._database.execute("COMMIT")
        except BaseException:
            if self._database.in_transaction:  # else no claim after this one could begin
                self._database.execute("ROLLBACK")
            raise
        return int(highest)
