"""Progress in the run's log, at most once a second.

Dispatch tells its progress in the event loop's thread, which must not wait; a line in Dagster's log is a
database write of about ten milliseconds. So the newest state is kept and a thread of its own writes it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

from dim_pipelines.dispatch.head import Progress

INTERVAL_S: Final = 1.0
"""The shortest time between two lines, in seconds."""


class ProgressLog:
    """Writes the newest progress with `write` while the `with` block runs, and once at its end."""

    def __init__(self, write: Callable[[str], object], interval_s: float = INTERVAL_S) -> None:
        """Take the function that writes one line, for example `context.log.info`; it may block."""
        self._write = write
        self._interval_s = interval_s
        self._newest: Progress | None = None
        self._written: Progress | None = None
        self._started = time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="dim-progress", daemon=True)

    def update(self, progress: Progress) -> None:
        """Keep the newest progress; never waits."""
        self._newest = progress

    def __enter__(self) -> Self:
        """Start to write."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop, and write the last state of a batch that came through."""
        self._ended.set()
        if kind is None:
            self._thread.join()
            self._write_newest()

    def _run(self) -> None:
        while not self._ended.wait(self._interval_s):
            self._write_newest()

    def _write_newest(self) -> None:
        newest = self._newest
        if newest is not None and newest != self._written:
            self._written = newest
            self._write(line(newest, time.monotonic() - self._started))


def line(progress: Progress, seconds: float) -> str:
    """Say how far a batch is, in one line."""
    share = 100 * progress.shards_done / progress.shards if progress.shards else 100.0
    rate = progress.rows_done / seconds if seconds > 0 else 0.0
    nodes = ", ".join(f"{name} {shards:,}" for name, shards in sorted(progress.nodes.items()))
    text = (
        f"{progress.shards_done:,} of {progress.shards:,} shards ({share:.0f} %), "
        f"{progress.rows_done:,} of {progress.rows:,} rows, {rate:,.0f} rows/s"
    )
    if progress.retries:
        text += f", {progress.retries:,} retries"
    if nodes:
        text += f"; shards per node: {nodes}"
    return f"{text}; {progress.waits}" if progress.waits else text
