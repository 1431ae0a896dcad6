"""Chunks are the protobuf message of link.proto, and nothing else is taken for one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dim_pipelines.errors import ProtocolError
from dim_pipelines.wire.chunk import CLOSED, MAX_DATA_BYTES, chunk_data, data_chunk
from dim_pipelines.wire.v1 import link_pb2


@pytest.mark.parametrize("size", [1, 127, 128, 129, 16_383, 16_384, 16_385, MAX_DATA_BYTES - 1, MAX_DATA_BYTES])
def test_chunks_are_what_protobuf_writes(size: int) -> None:
    data = bytes(range(256)) * (size // 256 + 1)
    data = data[:size]
    raw = data_chunk(data)
    assert raw == link_pb2.Chunk(data=data).SerializeToString()
    found = chunk_data(raw)
    assert found is not None and bytes(found) == data


def test_the_end_of_a_half_is_a_chunk() -> None:
    assert link_pb2.Chunk.FromString(CLOSED).closed
    assert chunk_data(CLOSED) is None


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x1a",
        b"\x1a\x00",  # carries nothing: a flood of these would move nothing and cost everything
        b"\x1a\x05abcd",  # cut short
        b"\x1a\x03abcd",  # longer than it says
        b"\x1a\x84\x00abcd",  # a length written longer than it needs to be
        link_pb2.Chunk(closed=False).SerializeToString(),
        link_pb2.Chunk(session=bytes(16)).SerializeToString(),
        link_pb2.Chunk(node="k51").SerializeToString(),
        link_pb2.Chunk(data=bytes(MAX_DATA_BYTES + 1)).SerializeToString(),
        CLOSED + CLOSED,
        CLOSED + data_chunk(b"x"),
        data_chunk(b"x") + data_chunk(b"y"),
    ],
)
def test_what_is_no_chunk_is_refused(raw: bytes) -> None:
    with pytest.raises(ProtocolError, match="not a chunk"):
        chunk_data(raw)


@given(st.binary(max_size=200) | st.binary(max_size=64).map(lambda data: b"\x1a" + data))
def test_what_is_taken_is_written_the_same_way(raw: bytes) -> None:
    try:
        data = chunk_data(raw)
    except ProtocolError:
        return
    assert raw == (CLOSED if data is None else data_chunk(bytes(data)))
