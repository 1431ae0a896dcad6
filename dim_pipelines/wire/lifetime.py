"""A server's life as others see it: one per home, announced while it serves, ended by signals or by its parent."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from dim_pipelines.errors import ConfigurationError

UNIX_LIMIT: Final = 100
"""The longest path of a socket, in bytes; unix(7) has room for 107."""


class Stop:
    """When to end: set by the first signal, or by the parent's end.

    Attributes:
        patient: whether running tasks may finish; nobody waits for them once the parent has gone.
    """

    def __init__(self) -> None:
        """Begin without a reason to end."""
        self.patient = True
        self._event = asyncio.Event()
        self._starting: asyncio.Task[object] | None = None
        self._interrupted = False

    async def wait(self) -> None:
        """Wait for the reason to end."""
        await self._event.wait()

    def signalled(self) -> None:
        """Take in a signal; the second one ends the process here."""
        if self._event.is_set():
            os._exit(130)  # the second signal: the person wants it gone, and the kernel ends the engines
        self._end()

    def orphaned(self) -> None:
        """Take in that the parent has gone."""
        self.patient = False
        self._end()

    @contextmanager
    def starting(self) -> Iterator[None]:
        """Until `started`, a reason to end cancels the task that is in here, which then leaves it without an error."""
        task = self._starting = asyncio.current_task()
        assert task is not None
        try:
            yield
        except asyncio.CancelledError:
            if not self._interrupted:
                raise
            task.uncancel()
        finally:
            self._starting = None

    def started(self) -> None:
        """Have later reasons waited for by `wait`."""
        self._starting = None

    def _end(self) -> None:
        self._event.set()
        if self._starting:
            self._interrupted = True
            self._starting.cancel()
            self._starting = None


@contextmanager
def stopping_by_signal(parent: int | None) -> Iterator[Stop]:
    """Give what SIGTERM, SIGINT and the end of the descriptor `parent` set."""
    loop, stop = asyncio.get_running_loop(), Stop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.signalled)

    def gone() -> None:
        assert parent is not None
        loop.remove_reader(parent)  # nothing is ever written to it: readable means closed
        stop.orphaned()

    if parent is not None:
        loop.add_reader(parent, gone)
    try:
        yield stop
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
        if parent is not None:
            loop.remove_reader(parent)


@contextmanager
def socket_in(folder: Path, name: str) -> Iterator[str]:
    """Give the address of a socket in the folder, or in a short one of its own where the path is too long for one."""
    path = folder / name
    if len(os.fsencode(path)) <= UNIX_LIMIT:
        yield f"unix:{path}"
        return
    base = tempfile.gettempdir()
    short = tempfile.mkdtemp(prefix="dim-", dir=base if len(os.fsencode(base)) <= UNIX_LIMIT // 2 else "/tmp")
    try:
        yield f"unix:{short}/{name}"
    finally:
        shutil.rmtree(short, ignore_errors=True)


@contextmanager
def locked(folder: Path, name: str, what: str) -> Iterator[None]:
    """Hold a folder of the home for this process; the kernel lets go when it ends, however it ends.

    Args:
        folder: made when missing.
        name: the lock's file in it.
        what: what runs in the home when somebody else holds it, for the error.

    Raises:
        ConfigurationError: somebody else holds it.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            _take(descriptor)
        except OSError as error:
            raise ConfigurationError(
                f"{what} runs in {folder.parent} already", hint="give each its own DIM_HOME"
            ) from error
        yield
    finally:
        os.close(descriptor)


def _take(lock: int) -> None:
    for wait_s in (0.05, 0.1, 0.2):
        try:
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(wait_s)  # a command that only looks whether it is held holds it for a moment
    return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextmanager
def announced(path: Path, announcement: Mapping[str, Any]) -> Iterator[None]:
    """Keep an announcement in a file, written whole, while the server serves."""
    write_announcement(path, announcement)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def write_announcement(path: Path, announcement: Mapping[str, Any]) -> None:
    """Write an announcement whole, in place of the one before."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.write_text(json.dumps(dict(announcement)) + "\n", encoding="utf-8")
    fresh.replace(path)
