from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from dim_pipelines.errors import ConfigurationError
from dim_pipelines.node import devices
from dim_pipelines.node.daemon import NodeConfig, serve
from dim_pipelines.node.engine_host import EngineHost
from dim_pipelines.node.lifetime import UNIX_LIMIT, locked, socket_in
from dim_pipelines.settings import Home


def test_a_socket_lies_in_the_home_where_its_path_is_short_enough(tmp_path: Path) -> None:
    with socket_in(tmp_path) as address:
        assert address == f"unix:{tmp_path}/node.sock"


@pytest.mark.parametrize("temporary", ["", "t" * UNIX_LIMIT])
def test_a_path_too_long_leads_to_a_short_private_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, temporary: str
) -> None:
    if temporary:
        monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / temporary))
    with socket_in(tmp_path / ("x" * UNIX_LIMIT)) as address:
        assert address.startswith("unix:/") and len(address) <= UNIX_LIMIT
        folder = Path(address.removeprefix("unix:")).parent
        assert folder.stat().st_mode & 0o777 == 0o700
    assert not folder.exists()


class Slow(EngineHost):
    """Takes for ever to start."""

    begun: asyncio.Event

    async def start(self) -> Any:
        self.begun.set()
        await asyncio.sleep(3600)


@pytest.fixture
async def slow(monkeypatch: pytest.MonkeyPatch) -> type[Slow]:
    monkeypatch.setattr(devices, "EngineHost", Slow)
    Slow.begun = asyncio.Event()
    return Slow


@pytest.mark.parametrize("reason", ["signal", "parent"])
async def test_a_daemon_that_is_starting_ends_at_once(tmp_path: Path, slow: type[Slow], reason: str) -> None:
    reading, writing = os.pipe()
    config = NodeConfig(Home.at(tmp_path), name="n", metrics_port=None, parent=reading)
    serving = asyncio.create_task(serve(config, ready=lambda address: None))
    await slow.begun.wait()
    with pytest.raises(ConfigurationError, match="already"), locked(config.home.node):
        pass
    if reason == "signal":
        os.kill(os.getpid(), signal.SIGTERM)
    else:
        os.close(writing)
    await asyncio.wait_for(serving, 5)
    assert not serving.cancelled()
    with locked(config.home.node):
        assert not (config.home.node / "node.json").exists()
    os.close(reading)
    if reason == "signal":
        os.close(writing)


async def test_a_start_that_somebody_else_cancels_is_cancelled(tmp_path: Path, slow: type[Slow]) -> None:
    serving = asyncio.create_task(serve(NodeConfig(Home.at(tmp_path), name="n"), ready=lambda address: None))
    await slow.begun.wait()
    serving.cancel()
    await asyncio.wait([serving])
    assert serving.cancelled()
