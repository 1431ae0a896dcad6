"""The bytes of a `Chunk` of the link service, written and read without a protobuf object.

A tunnel copies every byte five times as it is; a message object at each end and two in the relay would be six more.
The relay forwards what it has checked, unchanged. Source of the encoding:
https://protobuf.dev/programming-guides/encoding/ (tag, varint, bytes); the fields are those of `v1/link.proto`.
"""

from __future__ import annotations

from typing import Final

from dim_pipelines.errors import ProtocolError
from dim_pipelines.wire.v1 import link_pb2

MAX_DATA_BYTES: Final = 256 << 10
"""The most bytes one chunk carries."""
CLOSED: Final = link_pb2.Chunk(closed=True).SerializeToString()
"""The chunk after which its sender sends no more: it has closed its half."""

_DATA_TAG: Final = link_pb2.Chunk.DATA_FIELD_NUMBER << 3 | 2  # wire type 2: length-delimited
_LONGEST_HEAD: Final = 4  # the tag, and a varint of up to 256 Ki


def data_chunk(data: bytes) -> bytes:
    """Wrap 1 to `MAX_DATA_BYTES` bytes."""
    return b"".join((_head(len(data)), data))


def chunk_data(raw: bytes) -> memoryview | None:
    """Give the bytes that a chunk carries, uncopied; None where it says that its sender has closed its half.

    Raises:
        ProtocolError: it is neither, carries nothing, or carries more than `MAX_DATA_BYTES`.
    """
    if raw == CLOSED:
        return None
    size = len(raw)
    if 2 < size <= MAX_DATA_BYTES + _LONGEST_HEAD and raw[0] == _DATA_TAG:
        # One length has one shortest varint: the head of what must lie behind it is the only one taken.
        head = 2 if size < 2 + 0x80 else 3 if size < 3 + 0x4000 else 4
        if raw.startswith(_head(size - head)):
            return memoryview(raw)[head:]
    raise ProtocolError(f"not a chunk of a tunnel: {size} bytes, beginning {raw[:8].hex()}")


def _head(size: int) -> bytes:
    if size < 0x80:
        return bytes((_DATA_TAG, size))
    if size < 0x4000:
        return bytes((_DATA_TAG, size & 0x7F | 0x80, size >> 7))
    return bytes((_DATA_TAG, size & 0x7F | 0x80, size >> 7 & 0x7F | 0x80, size >> 14))
