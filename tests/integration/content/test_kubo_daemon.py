"""The private Kubo of a home: one owner, restarted, gone with its owner, and heard by nobody else."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import stat
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from dim_pipelines.content.kubo import KuboContentStore
from dim_pipelines.content.kubo_daemon import KuboDaemon, find_ipfs
from dim_pipelines.content.kubo_repository import running_kubo
from dim_pipelines.content.open import open_store
from dim_pipelines.errors import ConfigurationError
from dim_pipelines.settings import Home


@pytest.fixture
async def daemon(ipfs_binary: Path, tmp_path: Path) -> AsyncIterator[KuboDaemon]:
    daemon = await KuboDaemon.start(tmp_path / "kubo", ipfs_binary)
    yield daemon
    await daemon.stop()


async def until_gone(pid: int) -> None:
    deadline = time.monotonic() + 10
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "Kubo outlives its owner"
        await asyncio.sleep(0.02)


async def test_others_of_the_home_find_and_use_it(daemon: KuboDaemon, tmp_path: Path) -> None:
    assert running_kubo(tmp_path / "kubo") == daemon.address
    store = await open_store("kubo", Home.at(tmp_path))
    assert isinstance(store, KuboContentStore)
    assert store.address == daemon.address
    await store.close()
    with pytest.raises(ConfigurationError, match="another process") as raised:
        await KuboDaemon.start(tmp_path / "kubo")
    assert "--ipfs kubo" in raised.value.hint


async def test_after_a_stop_it_can_be_started_again(ipfs_binary: Path, tmp_path: Path) -> None:
    for _ in range(2):
        daemon = await KuboDaemon.start(tmp_path / "kubo", ipfs_binary)
        pid = daemon.pid
        await daemon.stop()
        await daemon.stop()
        await until_gone(pid)
        assert running_kubo(tmp_path / "kubo") is None


async def test_it_is_private_durable_and_heard_on_loopback_only(daemon: KuboDaemon, tmp_path: Path) -> None:
    repository = tmp_path / "kubo"
    for name in ("swarm.key", "config"):
        assert stat.S_IMODE((repository / name).stat().st_mode) == 0o600
    connections = psutil.Process(daemon.pid).net_connections(kind="inet")
    assert connections
    assert {connection.laddr.ip for connection in connections} == {"127.0.0.1"}
    config = json.loads((repository / "config").read_text())
    assert config["Bootstrap"] == []
    assert config["Datastore"]["Spec"]["mounts"][0]["sync"] is True
    log = (repository / "daemon.log").read_text()
    assert "private network" in log
    assert "ERROR" not in log


async def test_killed_it_comes_back_at_the_same_address(daemon: KuboDaemon) -> None:
    address, pid = daemon.address, daemon.pid
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 15
    while daemon.pid == pid or running_kubo(daemon._repository) is None:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
    assert daemon.address == address
    store = await KuboContentStore.connect(address)
    await store.close()


OWNER = """
import asyncio, sys
from pathlib import Path
from dim_pipelines.content.kubo_daemon import KuboDaemon

async def main():
    daemon = await KuboDaemon.start(Path(sys.argv[1]))
    print(daemon.pid, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


async def test_it_goes_with_its_owner(ipfs_binary: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", OWNER, str(tmp_path / "kubo")]
    owner = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    assert owner.stdout is not None
    pid = int(await owner.stdout.readline())
    owner.kill()
    await owner.wait()
    await until_gone(pid)
    daemon = await KuboDaemon.start(tmp_path / "kubo", ipfs_binary)  # neither lock is left behind
    await daemon.stop()


async def test_a_binary_that_is_no_kubo(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="ipfs init failed"):
        await KuboDaemon.start(tmp_path / "kubo", Path("/bin/false"))
    assert running_kubo(tmp_path / "kubo") is None


async def test_a_home_that_cannot_be_written(tmp_path: Path, ipfs_binary: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigurationError, match="cannot write"):
        await KuboDaemon.start(tmp_path / "file" / "kubo", ipfs_binary)


def test_without_a_binary_it_says_what_brings_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("dim_pipelines.content.kubo_daemon.__file__", str(tmp_path / "a" / "b" / "c.py"))
    with pytest.raises(ConfigurationError) as raised:
        find_ipfs()
    assert "make tools" in raised.value.hint
