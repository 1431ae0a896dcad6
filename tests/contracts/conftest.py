"""One private Kubo for the contracts of everything that can live in one."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from dim_pipelines.content.kubo_daemon import KuboDaemon


@pytest.fixture(scope="session")
def kubo_address(ipfs_binary: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run a real Kubo for the session, on a loop of its own, and give the address of its RPC."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="kubo-fixture")
    thread.start()

    async def start() -> KuboDaemon:
        return await KuboDaemon.start(tmp_path_factory.mktemp("kubo") / "repository", ipfs_binary)

    try:
        daemon = asyncio.run_coroutine_threadsafe(start(), loop).result(60)
        try:
            yield daemon.address
        finally:
            asyncio.run_coroutine_threadsafe(daemon.stop(), loop).result(30)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
