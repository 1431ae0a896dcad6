"""A model that tries to break out of its engine process fails at each try, and would succeed without the walls."""

from __future__ import annotations

import asyncio
import errno
import importlib.util
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from dim_pipelines.content.shards import decode_shard, encode_shard
from dim_pipelines.errors import ConfigurationError, EngineFailed
from dim_pipelines.identity.keys import load_or_create_key
from dim_pipelines.node import confinement
from dim_pipelines.node.engine_host import EngineConfig, EngineHost
from dim_pipelines.settings import Home

ENGINE = Path(__file__).with_name("escape_engine.py")
DESCRIPTION = {
    "name": "escape",
    "version": "1",
    "engine": "escape",
    "licence": "MIT",
    "inputs": [{"name": "x", "datatype": "INT64", "shape": []}],
    "outputs": [{"name": "y", "datatype": "BYTES", "shape": []}],
}


def boot(targets: dict[str, Any], abi: int | None = None) -> str:
    spec = importlib.util.spec_from_file_location("escape_engine", ENGINE)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    text: str = module.boot(targets, abi)
    return text


@pytest.fixture
def targets(tmp_path: Path) -> Iterator[dict[str, Any]]:
    home = Home.at(tmp_path / "home")
    load_or_create_key(home.node_key)
    model = home.node / "models" / "m"
    model.mkdir(parents=True)
    (model / "weights").write_bytes(b"weights")
    with socket.socket() as tcp, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        tcp.bind(("127.0.0.1", 0))
        tcp.listen()
        udp.bind(("127.0.0.1", 0))
        with socket.socket(socket.AF_UNIX) as unix, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagram:
            unix.bind(str(tmp_path / "u"))
            unix.listen()
            datagram.bind(str(tmp_path / "d"))
            yield {
                "home": str(home.root),
                "key": str(home.node_key),
                "model": str(model / "weights"),
                "elsewhere": str(tmp_path / "elsewhere"),
                "tcp": tcp.getsockname()[1],
                "udp": udp.getsockname()[1],
                "unix": str(tmp_path / "u"),
                "datagram": str(tmp_path / "d"),
            }


async def try_everything(targets: dict[str, Any], *, confine: bool, abi: int | None = None) -> dict[str, str]:
    home = Home.at(targets["home"])
    config = EngineConfig(
        device="cpu",
        engines=("escape",),
        threads=1,
        models=home.node / "models",
        scratch=home.node / "scratch",
        secrets=(home.node_key,),
        confine=confine,
    )
    host = EngineHost(config, boot(targets, abi))
    try:
        hello = await host.start()
        assert hello.confined is confine and hello.missing == {}
        await host.ask({"op": "load", "model": "m", "folder": "", "description": DESCRIPTION}, timeout_s=30)
        shard = encode_shard(pa.table({"id": [1], "x": [1]}))
        header = {"op": "run", "model": "m", "batch_rows": 1, "parameters": {}, "sizes": [len(shard)]}
        answer, output = await host.ask(header, shard, timeout_s=30)
        assert "code" not in answer["results"][0], answer
        text = decode_shard(output).column("y")[0].as_py().decode()
        return dict(line.split("=") for line in text.splitlines())
    finally:
        await host.kill()


@pytest.mark.parametrize("abi", [2, None], ids=["abi 2", "this kernel's abi"])
async def test_every_way_out_is_shut(targets: dict[str, Any], require: Any, abi: int | None) -> None:
    require(
        confinement.landlock_abi() >= (abi or 1) and not confinement.unavailable(),
        "Landlock with seccomp",
        "a Linux kernel from 5.19 on",
    )
    results = await try_everything(targets, confine=True, abi=abi)
    allowed = {name for name, result in results.items() if result == "done"}
    assert allowed == {"ok_write_scratch", "ok_read_model", "ok_thread", "ok_signal_itself"}
    denials = {result for result in results.values() if result != "done"}
    assert denials <= {f"denied {errno.EPERM}", f"denied {errno.EACCES}"}


async def test_every_way_out_is_open_without_the_walls(targets: dict[str, Any]) -> None:
    results = await try_everything(targets, confine=False)
    assert {name: result for name, result in results.items() if result != "done"} == {}


async def test_nothing_of_the_daemons_environment_is_inherited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    (tmp_path / "models").mkdir()
    host = EngineHost(EngineConfig("cpu", ("echo",), 1, tmp_path / "models", tmp_path / "scratch"))
    try:
        await host.start()
        environment = await asyncio.to_thread(Path(f"/proc/{host.pid}/environ").read_bytes)
        assert b"secret" not in environment
        names = {line.split(b"=")[0] for line in environment.split(b"\0") if line}
        assert names <= {*(name.encode() for name in host.config.environment()), b"LC_CTYPE"}
        descriptors = await asyncio.to_thread(open_descriptors, host.pid)
        assert sum(name.startswith("socket:") for name in descriptors) == 1
        limits = await asyncio.to_thread(Path(f"/proc/{host.pid}/status").read_text)
        assert "NoNewPrivs:\t1" in limits and "Seccomp:\t2" in limits
    finally:
        await host.kill()


def open_descriptors(pid: int | None) -> list[str]:
    return [str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir()]


async def test_a_home_that_models_could_read_is_refused(tmp_path: Path) -> None:
    secret = tmp_path / "models" / "keys" / "node.key"
    load_or_create_key(secret)
    host = EngineHost(EngineConfig("cpu", ("echo",), 1, tmp_path / "models", tmp_path / "scratch", (secret,)))
    with pytest.raises(ConfigurationError, match="which models may read"):
        await host.start()


async def test_too_much_memory_costs_the_attempt_only(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    config = EngineConfig("cpu", ("echo",), 1, tmp_path / "models", tmp_path / "scratch", memory_bytes=1 << 30)
    host = EngineHost(config)
    description = DESCRIPTION | {
        "engine": "echo",
        "inputs": [{"name": "x", "datatype": "FP64", "shape": [1 << 16]}],
        "outputs": [{"name": "y", "datatype": "FP64", "shape": [1 << 16]}],
        "max_batch_rows": 1 << 20,
    }
    try:
        await host.start()
        await host.ask({"op": "load", "model": "m", "folder": "", "description": description}, timeout_s=30)
        values = pa.FixedSizeListArray.from_arrays(pa.array([0.0] * (1 << 16)), 1 << 16)
        shard = encode_shard(pa.table({"id": [1], "x": values}))
        header = {"op": "run", "model": "m", "batch_rows": 1 << 15, "parameters": {}, "sizes": [len(shard)]}
        answer, _ = await host.ask(header, shard, timeout_s=60)
        assert answer["results"][0]["code"] == EngineFailed.code
        header["batch_rows"] = 1
        answer, _ = await host.ask(header, shard, timeout_s=60)
        assert answer["results"][0]["rows"] == 1
    finally:
        await host.kill()


async def test_a_process_that_uses_more_shared_memory_than_it_may_is_ended(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    greedy = (
        "import sys, json, mmap, socket, time; c = json.loads(sys.argv[1]); sys.path[:] = c['sys_path']\n"
        "from dim_pipelines.node.frames import FrameSocket\n"
        "end = FrameSocket(socket.socket(fileno=c['socket']))\n"
        "end.send({'confined': False, 'numerics': {}, 'missing': {}, 'memory': 0, 'device': ''})\n"
        "end.receive(); mmap.mmap(-1, 300 << 20).write(bytes(300 << 20)); time.sleep(60)\n"
    )
    config = EngineConfig(
        "cpu", (), 1, tmp_path / "models", tmp_path / "scratch", memory_bytes=128 << 20, confine=False
    )
    host = EngineHost(config, greedy)
    try:
        await host.start()
        with pytest.raises(
            EngineFailed, match=r"used \d+ bytes of memory, 134217728 are allowed, and was ended \(run\)"
        ):
            await host.ask({"op": "run"}, timeout_s=30)
        assert not host.alive
    finally:
        await host.kill()


async def test_a_killed_or_hanging_process_is_engine_failed_and_starts_again(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    host = EngineHost(EngineConfig("cpu", ("echo",), 1, tmp_path / "models", tmp_path / "scratch"))
    try:
        first = await host.start()
        assert host.pid is not None
        os.kill(host.pid, 9)
        with pytest.raises(EngineFailed, match="SIGKILL"):
            await host.ask({"op": "unload", "model": "m"}, timeout_s=5)
        assert not host.alive
        with pytest.raises(EngineFailed, match="not running"):
            await host.ask({"op": "unload", "model": "m"}, timeout_s=5)
        assert await host.start() == first
        os.kill(host.pid, 19)  # SIGSTOP: it hangs
        with pytest.raises(EngineFailed, match=r"longer than 0\.2 s"):
            await host.ask({"op": "unload", "model": "m"}, timeout_s=0.2)
        assert not host.alive
    finally:
        await host.kill()


async def test_an_engine_process_that_writes_rubbish_is_ended(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    rubbish = (
        "import sys, json, os; c = json.loads(sys.argv[1]); "
        "os.write(c['socket'], b'\\xff' * 64); import time; time.sleep(60)"
    )
    host = EngineHost(EngineConfig("cpu", ("echo",), 1, tmp_path / "models", tmp_path / "scratch"), rubbish)
    with pytest.raises(EngineFailed, match="announced a frame"):
        await host.start()
    assert not host.alive


async def test_an_engine_process_that_says_nothing_names_its_last_words(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    config = EngineConfig("cpu", ("echo",), 1, tmp_path / "models", tmp_path / "scratch")
    host = EngineHost(config, "raise RuntimeError('no such library')")
    for _ in range(10):  # it may be dead, dying or reaped when the daemon looks: the exit code is known always
        with pytest.raises(EngineFailed, match=r"exit code 1 .*no such library"):
            await host.start()
