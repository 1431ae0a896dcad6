"""A daemon's life as others see it: one per home, announced while it serves, ended by signals or by its parent."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from dim_pipelines.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class NodeAddress:
    """What a daemon announces once it serves; also the content of `node.json`.

    Attributes:
        address: for `open_channel`.
        key: the node's public key, `ed25519:…`.
        metrics: URL of `/metrics`; empty when it is not served.
    """

    name: str
    address: str
    pid: int
    key: str
    metrics: str


class Stop:
    """When to end: set by the first signal, or by the parent's end.

    Attributes:
        patient: whether running tasks may finish; nobody waits for them once the parent has gone.
    """

    def __init__(self) -> None:
        """Begin without a reason to end."""
        self.patient = True
        self._event = asyncio.Event()

    async def wait(self) -> None:
        """Wait for the reason to end."""
        await self._event.wait()

    def signalled(self) -> None:
        """Take in a signal; the second one ends the process here."""
        if self._event.is_set():
            os._exit(130)  # the second signal: the person wants it gone, and the kernel ends the engines
        self._event.set()

    def orphaned(self) -> None:
        """Take in that the parent has gone."""
        self.patient = False
        self._event.set()


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
def locked(folder: Path) -> Iterator[None]:
    """Hold the home for this daemon; the kernel lets go when the process ends, however it ends."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(folder / "node.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigurationError(
                f"a node daemon runs in {folder.parent} already", hint="give each daemon its own --home"
            ) from error
        yield
    finally:
        os.close(descriptor)


@contextmanager
def announced(path: Path, address: NodeAddress) -> Iterator[None]:
    """Keep the announcement in a file, written whole, while the daemon serves."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.write_text(json.dumps(asdict(address)) + "\n", encoding="utf-8")
    fresh.replace(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
