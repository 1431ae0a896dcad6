"""The content store against real Kubos, and against things that are none."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dim_pipelines.content import unixfs
from dim_pipelines.content.kubo import KuboContentStore
from dim_pipelines.content.kubo_address import find_secret
from dim_pipelines.content.kubo_daemon import KuboDaemon
from dim_pipelines.content.kubo_pins import group_block
from dim_pipelines.content.memory import MemoryContentStore
from dim_pipelines.content.store import Block, Pin
from dim_pipelines.domain.cid import DAG_CBOR, RAW, Cid
from dim_pipelines.domain.format import encode_cbor
from dim_pipelines.errors import ConfigurationError, ContentMismatch, ContentNotFound, ContentUnavailable, DimError

PIN = Pin("local", "batch/1")
CHUNK = 262_144


def raw(size: int = 40) -> Block:
    data = os.urandom(size)
    return Block(Cid.of(RAW, data), data)


@pytest.fixture
async def store(kubo_address: str) -> AsyncIterator[KuboContentStore]:
    store = await KuboContentStore.connect(kubo_address, timeout_s=5.0)
    yield store
    await store.close()


@pytest.fixture(scope="session")
def hash_only(ipfs_binary: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], str]:
    """Give the CID that the `ipfs` command gives a file or folder."""
    environment = {
        **os.environ,
        "IPFS_PATH": str(tmp_path_factory.mktemp("ipfs") / "repository"),
        "IPFS_TELEMETRY": "off",
    }
    init = [ipfs_binary, "init", "--empty-repo", "--profile=autoconf-off"]
    subprocess.run(init, env=environment, check=True, capture_output=True)

    def add(path: Path) -> str:
        command = [ipfs_binary, "add", "-rnQ", "--cid-version=1", "--raw-leaves", path]
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.strip()

    return add


@pytest.mark.parametrize("chunks", [0, 1, 2, 173, 174, 175])
async def test_files_have_the_names_that_ipfs_gives_them(
    tmp_path: Path, hash_only: Callable[[Path], str], chunks: int
) -> None:
    store = MemoryContentStore()
    pattern = os.urandom(CHUNK)
    for size in {max(0, chunks * CHUNK + more) for more in (-1, 0, 1)}:
        data = (pattern * (size // CHUNK + 1))[:size]
        (tmp_path / "file").write_bytes(data)
        assert str(await unixfs.add_bytes(store, data)) == hash_only(tmp_path / "file")


contents = st.one_of(
    st.binary(max_size=20), st.integers(0, 3 * CHUNK).map(lambda size: size.to_bytes(4) * (size // 4 + 1))
)
names = st.text(st.sampled_from("abcÄß日.- "), min_size=1, max_size=4).filter(lambda name: not name.startswith("."))


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.tuples(st.sampled_from(["", "D/", "D/E/", "F/"]), names), contents, max_size=8))
async def test_law_folders_have_the_names_that_ipfs_gives_them(
    tmp_path: Path, hash_only: Callable[[Path], str], tree: dict[tuple[str, str], bytes]
) -> None:
    folder = tmp_path / str(time.monotonic_ns())
    folder.mkdir()
    files = {"".join(path): data for path, data in tree.items()}
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    assert str(await unixfs.add_folder(MemoryContentStore(), files)) == hash_only(folder)


async def test_the_ipfs_command_reads_what_was_stored(
    store: KuboContentStore, ipfs_binary: Path, tmp_path: Path
) -> None:
    data = os.urandom(600_000)
    root = await unixfs.add_folder(store, {"a/data.bin": data, "b.txt": b"text"}, pin=Pin("local", "model/x"))
    environment = {**os.environ, "IPFS_PATH": str(tmp_path)}

    def ipfs(*arguments: str) -> bytes:
        secret = find_secret(store.address)
        command = [ipfs_binary, "--api", store.address, f"--api-auth=bearer:{secret}", *arguments]
        return subprocess.run(command, env=environment, check=True, capture_output=True, timeout=20).stdout

    assert ipfs("cat", f"{root}/a/data.bin") == data
    assert b"data.bin" in ipfs("ls", f"{root}/a")
    assert b"dim:r:" in ipfs("pin", "ls", "--names", "--type=recursive")


async def test_pins_of_a_writer_that_was_killed_end_in_time(store: KuboContentStore) -> None:
    block = raw()
    group = group_block([block.cid], PIN)
    assert (
        store._calls.import_pinned([block, group], group.cid) == ""
    )  # and here the writer dies, before it names the pin
    now_ms = time.time_ns() // 1_000_000
    await store.collect(now_ms)
    assert await store.have([block.cid]) == {block.cid}
    await store.collect(now_ms + 2 * 3_600_000)
    assert await store.have([block.cid]) == frozenset()


async def test_pins_of_others_are_left_alone(store: KuboContentStore) -> None:
    mine, theirs = raw(), raw()
    await store.put([mine, theirs])
    store._rpc.json("/pin/add", str(theirs.cid), options={"name": "their own pin: a"})
    await store.collect(time.time_ns() // 1_000_000 + 1000, grace_s=0.0)
    assert await store.have([mine.cid, theirs.cid]) == {theirs.cid}
    assert theirs.cid not in {root for root, _ in await store.pins()}
    store._rpc.json("/pin/rm", str(theirs.cid))


async def test_a_long_owner_is_refused_before_anything_is_stored(store: KuboContentStore) -> None:
    block = raw()
    with pytest.raises(DimError, match="too long"):
        await store.put([block], pin=Pin("o" * 300, "x"))
    assert await store.have([block.cid]) == frozenset()


async def test_a_peer_has_what_is_missing_here(store: KuboContentStore, ipfs_binary: Path, tmp_path: Path) -> None:
    """Two Kubos with one swarm key: reads and pins go to the other, `have` does not."""
    key = "ab" * 32
    daemons = [await KuboDaemon.start(tmp_path / name / "repository", ipfs_binary, swarm_key=key) for name in "ab"]
    one, two = [await KuboContentStore.connect(daemon.address, timeout_s=10.0) for daemon in daemons]
    try:
        assert one.swarm != two.swarm
        [identity] = one._rpc.json("/id")
        two._rpc.json("/swarm/connect", identity["Addresses"][0])
        blocks = [raw(20_000) for _ in range(60)]
        page = encode_cbor([block.cid for block in blocks])
        root = Block(Cid.of(DAG_CBOR, page), page)
        await one.put([*blocks, root], pin=PIN)
        assert await two.have([block.cid for block in blocks]) == frozenset()
        assert [block async for block in two.get_many([block.cid for block in blocks[:40]])] == blocks[:40]
        await two.pin(root.cid, PIN)
        assert len(await two.have([block.cid for block in blocks])) == 60
        with pytest.raises(ContentNotFound):
            started = time.monotonic()
            await (await KuboContentStore.connect(two.address, timeout_s=1.0)).get(raw().cid)
        assert time.monotonic() - started < 5.0
    finally:
        for each in (one, two):
            await each.close()
        for daemon in daemons:
            await daemon.stop()


async def test_goes_on_after_kubo_was_restarted(ipfs_binary: Path, tmp_path: Path) -> None:
    daemon = await KuboDaemon.start(tmp_path / "repository", ipfs_binary)
    store = await KuboContentStore.connect(daemon.address)
    try:
        before, after = raw(), raw()
        await store.put([before])
        os.kill(daemon.pid, 9)
        await store.put([after], pin=PIN)
        assert [block async for block in store.get_many([before.cid, after.cid])] == [before, after]
    finally:
        await store.close()
        await daemon.stop()


class FakeKubo(BaseHTTPRequestHandler):
    """Answers like a Kubo with a public config and one block, which it cuts or alters on demand."""

    protocol_version = "HTTP/1.1"
    block = raw(1000)
    body: bytes = b""
    config: ClassVar[dict[str, Any]] = {"Bootstrap": ["auto"], "Datastore": {}}

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        self.rfile.read(length)
        url = urlsplit(self.path)
        answers: dict[str, Any] = {
            "/api/v0/id": {"ID": "peer", "AgentVersion": "kubo/0.43.0"},
            "/api/v0/config/show": self.config,
            "/api/v0/repo/stat": {"RepoPath": "/nowhere", "RepoSize": 1},
            "/api/v0/swarm/addrs/listen": {"Strings": []},
            "/api/v0/swarm/peers": {"Peers": None},
        }
        if url.path == "/api/v0/block/get":
            found = parse_qs(url.query)["arg"] == [str(self.block.cid)]
            self.answer(200, self.body) if found else self.answer(
                500, json.dumps({"Message": "block was not found locally", "Code": 0, "Type": "error"}).encode()
            )
        elif url.path in answers:
            self.answer(200, json.dumps(answers[url.path]).encode())
        else:
            self.answer(404, b"404 page not found")

    def answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""


class SomethingElse(FakeKubo):
    """An HTTP server that is no Kubo."""

    status, body = 200, b"<html>Welcome</html>"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.answer(self.status, self.body)


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"/ip4/127.0.0.1/tcp/{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("body", [FakeKubo.block.data[:-1], b"", FakeKubo.block.data[:-1] + b"?", b"other" * 300])
async def test_a_cut_or_altered_answer_is_never_data(monkeypatch: pytest.MonkeyPatch, body: bytes) -> None:
    """A cut body looks whole to the HTTP client: Kubo tells of it in a trailer that is dropped."""
    monkeypatch.setattr(FakeKubo, "body", body)
    with serving(FakeKubo) as address:
        store = await KuboContentStore.connect(address)
        with pytest.raises(ContentMismatch):
            await store.get(FakeKubo.block.cid)
        with pytest.raises(ContentMismatch):
            [block async for block in store.get_many([FakeKubo.block.cid])]
        await store.close()


async def test_a_public_kubo_is_read_from_but_not_added_to(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(FakeKubo, "body", FakeKubo.block.data)
    with serving(FakeKubo) as address:
        store = await KuboContentStore.connect(address)
        assert await store.get(FakeKubo.block.cid) == FakeKubo.block.data
        for call in (store.put([raw()]), store.pin(FakeKubo.block.cid, PIN)):
            with pytest.raises(ConfigurationError, match="not shown to be private") as raised:
                await call
            assert "--public" in raised.value.hint
        await store.close()
        allowed = await KuboContentStore.connect(address, public=True)
        with pytest.raises(ConfigurationError, match="not the RPC of a Kubo"):
            await allowed.put([raw()])  # it is tried: the fake knows no such call
        await allowed.close()


async def test_a_kubo_that_does_not_sync_is_told_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    spec = {"Spec": {"mounts": [{"type": "flatfs", "sync": False}]}}
    monkeypatch.setattr(FakeKubo, "config", {"Datastore": spec})
    with serving(FakeKubo) as address:
        await (await KuboContentStore.connect(address)).close()
    assert "does not sync" in caplog.text


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, b"<html>Welcome</html>"),
        (200, b"{}"),
        (200, b"[]"),
        (200, b'{"ID": "x", "AgentVersion": "go-ethereum"}'),
        (200, b""),
        (200, b"\xff\xfe"),
        (404, b"404 page not found"),
        (405, b""),
        (403, b"403 - Forbidden"),
        (500, b'{"other": "error"}'),
        (302, b""),
    ],
)
async def test_an_address_where_something_else_answers(
    monkeypatch: pytest.MonkeyPatch, status: int, body: bytes
) -> None:
    monkeypatch.setattr(SomethingElse, "status", status)
    monkeypatch.setattr(SomethingElse, "body", body)
    with serving(SomethingElse) as address, pytest.raises(ConfigurationError) as raised:
        await KuboContentStore.connect(address, timeout_s=2.0)
    assert raised.value.hint
    assert "\n" not in raised.value.message


async def test_an_address_where_nothing_answers() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        for listens in (False, True):  # refused, and taken but never answered
            if listens:
                listener.listen()
            started = time.monotonic()
            with pytest.raises(ContentUnavailable) as raised:
                await KuboContentStore.connect(f"http://127.0.0.1:{port}", timeout_s=0.5)
            assert raised.value.hint
            assert time.monotonic() - started < 5.0
    with pytest.raises(ContentUnavailable):
        await KuboContentStore.connect("/unix/nowhere/kubo.sock", timeout_s=0.5)
    with pytest.raises(ContentUnavailable):
        await KuboContentStore.connect("http://name.invalid:5001", timeout_s=0.5)


async def test_an_address_where_no_http_is_spoken() -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-OpenSSH_9.6\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    with pytest.raises(DimError) as raised:
        await KuboContentStore.connect(f"/ip4/127.0.0.1/tcp/{port}", timeout_s=2.0)
    assert raised.value.hint
    server.close()


@pytest.fixture
def small_disk(tmp_path: Path, require: Callable[[bool, str, str], None]) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)]
    mounted = os.geteuid() == 0 and subprocess.run(command, capture_output=True, check=False).returncode == 0
    require(mounted, "the right to mount a tmpfs", "run the tests as root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


async def test_a_full_disk_under_kubo(ipfs_binary: Path, small_disk: Path) -> None:
    daemon = await KuboDaemon.start(small_disk / "repository", ipfs_binary)
    store = await KuboContentStore.connect(daemon.address)
    stored: list[Block] = []
    try:
        with pytest.raises(ContentUnavailable, match="no space left") as raised:
            for _ in range(40):
                blocks = [raw(250_000) for _ in range(4)]
                await store.put(blocks, pin=PIN)
                stored += blocks
        assert "dim gc" in raised.value.hint
        assert stored
        assert [block async for block in store.get_many([block.cid for block in stored])] == stored
    finally:
        await store.close()
        await daemon.stop()
