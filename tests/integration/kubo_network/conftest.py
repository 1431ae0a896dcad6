"""A private swarm of three real Kubos on loopback, the third of which only dials out."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from dim_pipelines.content.kubo_daemon import KuboDaemon

PATIENCE_S = 60.0


class Swarm:
    """The three, on a loop of their own, so that all tests share them."""

    def __init__(self, folder: Path, binary: Path) -> None:
        self._folder = folder
        self._binary = binary
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="swarm")
        self._thread.start()
        self.daemons: list[KuboDaemon] = []

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE_S)

    def start(self, name: str) -> KuboDaemon:
        """Start one, or start it again where it lies already."""
        first = self.daemons[0] if self.daemons else None
        daemon: KuboDaemon = self.run(
            KuboDaemon.start(
                self._folder / name / "kubo",
                self._binary,
                swarm_key=first.swarm_key if first else None,
                peers=first.swarm_addresses if first else (),
                listen=() if name == "c" else "/ip4/127.0.0.1/tcp/0",
            )
        )
        return daemon

    def stop(self, daemon: KuboDaemon) -> None:
        self.run(daemon.stop())

    def close(self) -> None:
        for daemon in self.daemons:
            self.stop(daemon)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.fixture(scope="session")
def swarm(ipfs_binary: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swarm]:
    swarm = Swarm(tmp_path_factory.mktemp("swarm"), ipfs_binary)
    try:
        for name in "abc":
            swarm.daemons.append(swarm.start(name))
        yield swarm
    finally:
        swarm.close()


@pytest.fixture(scope="session")
def eventually() -> Callable[[Callable[[], Awaitable[object]]], Awaitable[None]]:
    """Give `await eventually(check)`: repeats an async check until it is true, or fails with its last error."""

    async def wait(check: Callable[[], Awaitable[object]]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                if await check():
                    return
                last: Exception | None = None
            except Exception as error:
                last = error
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {PATIENCE_S:.0f} s") from last
            await asyncio.sleep(0.05)

    return wait
