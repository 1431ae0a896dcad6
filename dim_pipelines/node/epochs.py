"""The highest epoch seen of each batch, durable: a run that was overtaken is refused, after a restart too.

A small SQLite file of the daemon's own. An entry is forgotten a day after its grant has ended: no grant of
a lower epoch can be valid by then.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Final

from dim_pipelines.domain.grant import Grant
from dim_pipelines.errors import ConfigurationError, StaleEpoch

REMEMBERED_MS: Final = 24 * 3600 * 1000
"""How long after a grant's end its epoch is kept, in milliseconds."""


class Epochs:
    """Call it from one thread at a time; a call takes a few milliseconds (one synced write)."""

    def __init__(self, path: Path) -> None:
        """Open the file, or make it.

        Raises:
            ConfigurationError: it cannot be opened or is no such file.
        """
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
            ConfigurationError: the file cannot be written.
        """
        try:
            self._database.execute("BEGIN IMMEDIATE")
            try:
                self._database.execute("DELETE FROM epochs WHERE forget_ms <= ?", (now_ms,))
                row = self._database.execute(
                    "INSERT INTO epochs VALUES (?, ?, ?, ?) ON CONFLICT (network, batch) DO UPDATE SET "
                    "epoch = max(epoch, excluded.epoch), forget_ms = max(forget_ms, excluded.forget_ms) "
                    "RETURNING epoch",
                    (grant.network, grant.batch, grant.epoch, grant.not_after_ms + REMEMBERED_MS),
                ).fetchone()
            finally:
                self._database.execute("COMMIT")
        except (sqlite3.Error, OverflowError) as error:
            raise ConfigurationError(f"cannot store the epoch of batch {grant.batch}: {error}") from error
        if row[0] > grant.epoch:
            raise StaleEpoch(f"batch {grant.batch} is at epoch {row[0]}, this run has {grant.epoch}")

    def close(self) -> None:
        """Close the file."""
        self._database.close()
