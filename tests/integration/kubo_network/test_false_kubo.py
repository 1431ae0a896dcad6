"""What answers like a Kubo and is a bad one: it hangs, breaks off, answers 500, lies, or never ends."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dim_pipelines.bus import kubo as bus_module
from dim_pipelines.bus.kubo import KuboBus
from dim_pipelines.bus.message import sign_hint
from dim_pipelines.content.kubo_http import MAX_LINE_BYTES, KuboHttp
from dim_pipelines.discovery.kubo_names import KuboNameService
from dim_pipelines.discovery.record import name_of, read_node_record, sign_record
from dim_pipelines.errors import (
    ConfigurationError,
    ContentUnavailable,
    DimError,
    NameUnresolved,
    RecordExpired,
    RecordForged,
    RolledBack,
)

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
NAME = name_of(KEY)
Answer = Callable[[str, bytes], bytes | None]
"""Path and body of a request → the bytes of the answer; None: it never answers."""


def ok(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body


def refused(message: str, status: int = 500) -> bytes:
    body = json.dumps({"Message": message, "Code": 0, "Type": "error"}).encode()
    return b"HTTP/1.1 %d Bad\r\nContent-Length: %d\r\n\r\n" % (status, len(body)) + body


def record(sequence: int = 1, value: str = "/ipfs/bafkqaaa") -> bytes:
    return sign_record(KEY, value, sequence, time.time_ns() // 1_000_000 + 600_000, 0)


@asynccontextmanager
async def false_kubo(answer: Answer) -> AsyncIterator[str]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            length = next(int(line[15:]) for line in head.splitlines() if line.lower().startswith("content-length:"))
            body = await reader.readexactly(length)
            given = answer(head.split()[1], body)
            if given is None:
                await reader.read()  # until the caller gives up
            else:
                writer.write(given)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"/ip4/127.0.0.1/tcp/{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (None, ContentUnavailable),
        (b"", ContentUnavailable),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort", ContentUnavailable),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab", ContentUnavailable),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", ConfigurationError),
        (b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n", ConfigurationError),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 100 + b"\r\n", ConfigurationError),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000, ConfigurationError),
        (b"SSH-2.0-OpenSSH_9.2\r\n", ConfigurationError),
        (b"\x00\xff" * 50, ContentUnavailable),
        (ok(bytes(2 << 20)), ContentUnavailable),
        (
            b"HTTP/1.1 502 Bad\r\nContent-Length: 4\r\n\r\noops",
            ContentUnavailable,
        ),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\noops", ConfigurationError),
        (b"HTTP/1.1 403 Forbidden\r\nContent-Length: 4\r\n\r\noops", ConfigurationError),
    ],
)
async def test_every_bad_answer_is_one_line(answer: bytes | None, error: type[DimError]) -> None:
    async with false_kubo(lambda path, body: answer) as address:
        with pytest.raises(error) as raised:
            await KuboHttp(address).call("name/get", NAME, timeout_s=1.0)
        assert "\n" not in raised.value.message
        assert address in raised.value.message


async def test_nobody_there(tmp_path: Path) -> None:
    async with false_kubo(lambda path, body: None) as address:
        pass
    for nowhere in (address, f"/unix{tmp_path}/kubo.sock".lower()):
        with pytest.raises(ContentUnavailable, match="no Kubo answers"):
            await KuboNameService(nowhere).get(NAME, 1.0)


@pytest.mark.parametrize(
    "address", ["", "/ip4/127.0.0.1", "/ip4/127.0.0.1/udp/1", "/ip4/127.0.0.1/tcp/x", "localhost:1"]
)
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ConfigurationError):
        KuboNameService(address)


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ("existing IPNS record has sequence 100 >= new record sequence 50, use force", RolledBack),
        ("record validation failed: record is expired", RecordExpired),
        ("signature verification failed", RecordForged),
        ("invalid IPNS record: record is malformed", RecordForged),
        ("failed to find any peer in table", ContentUnavailable),
    ],
)
async def test_a_put_that_kubo_refuses_is_translated(message: str, error: type[DimError]) -> None:
    async with false_kubo(lambda path, body: refused(message)) as address:
        with pytest.raises(error):
            await KuboNameService(address).put(NAME, record())


@pytest.mark.parametrize(
    ("given", "error"),
    [
        (refused("routing: not found"), ContentUnavailable),
        (ok(b""), ContentUnavailable),
        (ok(b"garbage"), ContentUnavailable),
        (ok(record(0)), ContentUnavailable),
        (ok(record(9)), RolledBack),
        (ok(record(1, "/ipfs/other")), RolledBack),
        (ok(bytes(11_000)), ContentUnavailable),
    ],
)
async def test_a_put_counts_only_when_it_is_read_back(given: bytes, error: type[DimError]) -> None:
    """With `force`, and behind a hung peer, Kubo answers 200 to what it has not stored."""
    put = record(1)

    def answer(path: str, body: bytes) -> bytes:
        assert "force" not in path
        if path.startswith("/api/v0/name/put"):
            assert put in body
            return ok(b"{}")
        return given

    async with false_kubo(answer) as address:
        with pytest.raises(error):
            await KuboNameService(address).put(NAME, put)


async def test_a_name_that_resolves_to_garbage_is_for_the_reader_to_refuse() -> None:
    async with false_kubo(lambda path, body: ok(b"garbage")) as address:
        raw = await KuboNameService(address).get(NAME)
        with pytest.raises(RecordForged):
            read_node_record(raw, NAME)


async def test_an_answer_that_cannot_be_a_record_is_none() -> None:
    for body in (b"", bytes(10_241)):
        async with false_kubo(lambda path, _, body=body: ok(body)) as address:  # type: ignore[misc]
            with pytest.raises(NameUnresolved, match=f"gives {len(body)} bytes"):
                await KuboNameService(address).get(NAME)


async def test_hints_are_found_between_everything_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bus_module, "FIRST_PAUSE_S", 0.01)
    numbers = iter(range(1, 1_000_000))

    def message(data: object, sender: object = "peer") -> bytes:
        return json.dumps({"from": sender, "data": data, "seqno": "u", "topicIDs": []}).encode() + b"\n"

    def answer(path: str, body: bytes) -> bytes:
        raw = sign_hint(KEY, "n", "nodes", next(numbers), b"a hint")
        good = message("u" + base64.urlsafe_b64encode(raw).decode().rstrip("="))
        junk = [
            b"\n", b"not json\n", b"[]\n", b"null\n", b"{}\n", message(5), message("z"), message("u!!!"),
            message("uAAAA"), message("u" + "A" * (MAX_LINE_BYTES * 3)), b"[" * 9_000 + b"\n",
            message("uAAAA", {"a": 1}),
        ]  # fmt: skip
        lines = b"".join(junk) + good + b"{cut"
        chunks = [lines[start : start + 777] for start in range(0, len(lines), 777)]
        framed = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks)
        return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + framed + b"0\r\n\r\n"

    async with false_kubo(answer) as address:
        bus = KuboBus(address, "n", KEY)
        async with bus.subscribe("nodes") as hints, asyncio.timeout(60):
            for _ in range(3):  # each from another connection: it subscribes again when the stream ends
                assert (await anext(hints)).body == b"a hint"
        assert bus.dropped["malformed"] >= 3
        assert bus.dropped["invalid"] >= 2


@pytest.mark.parametrize("given", [refused("pubsub is not enabled"), refused("validation ignored"), None])
async def test_a_publish_that_fails_says_so(given: bytes | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bus_module, "PUBLISH_S", 0.5)
    async with false_kubo(lambda path, body: given) as address:
        with pytest.raises(ContentUnavailable):
            await KuboBus(address, "n", KEY).publish("nodes", b"x")


async def test_a_publish_that_lost_a_race_is_made_again() -> None:
    answers = [refused("publish: validation ignored"), refused("publish: validation ignored"), ok(b"")]
    bodies: list[bytes] = []

    def answer(path: str, body: bytes) -> bytes:
        bodies.append(body.split(b"\r\n\r\n")[1])
        return answers[len(bodies) - 1]

    async with false_kubo(answer) as address:
        await KuboBus(address, "n", KEY).publish("nodes", b"x")
    assert len(bodies) == 3
    assert len({body.partition(b"\r\n--")[0] for body in bodies}) == 1
