from __future__ import annotations

import asyncio
import json
import socket
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dim_pipelines.errors import ProtocolError
from dim_pipelines.node.engine_process import reply
from dim_pipelines.node.frames import (
    MAX_HEADER_BYTES,
    FrameSocket,
    clean_text,
    decode_header,
    encode_frame,
    read_frame,
)

headers = st.dictionaries(
    st.text(max_size=8), st.integers() | st.text(max_size=20) | st.lists(st.integers()), max_size=5
)


def fed(data: bytes) -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    return reader


@given(headers, st.lists(st.binary(max_size=50), max_size=4))
async def test_what_is_written_is_read(header: dict[str, Any], parts: list[bytes]) -> None:
    data = b"".join(encode_frame(header, *parts))
    assert await read_frame(fed(data), 1000) == (header, b"".join(parts))


@given(st.binary(max_size=200))
async def test_rubbish_is_a_protocol_error_or_an_early_end(data: bytes) -> None:
    try:
        header, payload = await read_frame(fed(data), 100)
    except (ProtocolError, asyncio.IncompleteReadError):
        return
    assert isinstance(header, dict) and len(payload) <= 100


async def test_lengths_are_bounded_before_anything_is_read() -> None:
    for header, payload in ((MAX_HEADER_BYTES + 1, 0), (2, 101)):
        with pytest.raises(ProtocolError, match="announced"):
            await read_frame(fed(struct.pack("!II", header, payload) + b"{}"), 100)
    with pytest.raises(ProtocolError, match="too large"):
        encode_frame({"x": "y" * MAX_HEADER_BYTES})


@pytest.mark.parametrize("text", [b"[]", b"\xff", b"{", b"[" * 100_000])
def test_headers_are_json_objects(text: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode_header(text)


def test_the_engines_end_reads_and_writes_the_same_frames() -> None:
    here, there = socket.socketpair()
    with here, there:
        one, other = FrameSocket(here), FrameSocket(there)
        one.send({"op": "run"}, b"ab", b"c")
        received = other.receive()
        assert received is not None and received[0] == {"op": "run"} and bytes(received[1]) == b"abc"
        here.sendall(struct.pack("!II", 10, 0) + json.dumps({}).encode())
        here.close()
        assert other.receive() is None and other.receive() is None


def test_an_answer_that_is_too_large_becomes_a_failure() -> None:
    here, there = socket.socketpair()
    with here, there:
        reply(FrameSocket(here), {"ok": True, "x": "y" * MAX_HEADER_BYTES}, [b"z"])
        answer = FrameSocket(there).receive()
    assert answer is not None and answer[0]["ok"] is False and answer[0]["code"] == "engine_failed"
    assert "too large" in answer[0]["message"]


@given(st.text(st.characters()) | st.integers() | st.lists(st.text(st.characters())), st.integers(0, 20))
def test_clean_text_can_be_encoded(value: object, limit: int) -> None:
    text = clean_text(value, limit)
    assert len(text) <= limit and len(text.encode()) >= len(text)
    assert not isinstance(value, str) or not value.isascii() or text == value[:limit]
