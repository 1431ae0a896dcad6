"""The last sequence that a home has used for each of its names, in a file that is written before the next is used."""

from __future__ import annotations

import json
import logging
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from dim_pipelines.errors import ContentUnavailable

_log = logging.getLogger(__name__)


class SequenceFile:
    """Sequences by name: Unix milliseconds, or one more than the last where the clock stands still or went back."""

    def __init__(self, path: Path, clock_ms: Callable[[], int] | None = None) -> None:
        """Take the file, which is made when it is missing, and Unix time in milliseconds."""
        self._path = path
        self._clock_ms = clock_ms or (lambda: time.time_ns() // 1_000_000)

    def next(self, name: str) -> int:
        """Give the next sequence of a name, once it is on the disk.

        Raises:
            ContentUnavailable: it cannot be written; nothing may be signed with it then.
        """
        last = self._read()
        sequence = max(self._clock_ms(), last.get(name, 0) + 1)
        self._write({**last, name: sequence})
        return sequence

    def _read(self) -> dict[str, int]:
        try:
            found = json.loads(self._path.read_text())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            _log.warning("cannot read %s, so sequences go on from the clock: %s", self._path, error)
            return {}
        if not isinstance(found, dict):
            _log.warning("%s holds no sequences, so they go on from the clock", self._path)
            return {}
        return {name: value for name, value in found.items() if type(value) is int}

    def _write(self, sequences: dict[str, int]) -> None:
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor, fresh = tempfile.mkstemp(prefix=f".{self._path.name}.", dir=self._path.parent)
            try:
                with os.fdopen(descriptor, "w") as file:
                    file.write(json.dumps(sequences))
                    file.flush()
                    os.fsync(file.fileno())
                Path(fresh).replace(self._path)
            except BaseException:
                Path(fresh).unlink(missing_ok=True)
                raise
        except OSError as error:
            raise ContentUnavailable(f"cannot write {self._path}: {error.strerror or error}") from error
