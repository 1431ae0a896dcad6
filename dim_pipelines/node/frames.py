"""What the daemon and an engine process say to each other over their socketpair.

A frame is two big-endian 32-bit lengths, a JSON header and plain bytes. The daemon reads frames that a
confined but possibly hostile process wrote: lengths are bounded before anything is allocated, and
every field is checked where it is used.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from typing import Any, Final

from dim_pipelines.errors import ProtocolError

MAX_HEADER_BYTES: Final = 4 << 20
MAX_PAYLOAD_BYTES: Final = (1 << 32) - 1
MAX_ROW_ERRORS: Final = 1000
"""The most rows of a shard that are told one by one to have failed; the last reason counts the others."""
MAX_REASON: Final = 300
"""The longest reason of a failed row, in characters."""
_JOINED_BYTES: Final = 1 << 20
_LENGTHS: Final = struct.Struct("!II")


def encode_frame(header: dict[str, Any], *payload: bytes) -> list[bytes]:
    """Give the buffers of a frame; the payload parts are joined by the reader.

    Raises:
        ProtocolError: the frame is too large.
    """
    text = json.dumps(header, separators=(",", ":")).encode()
    size = sum(map(len, payload))
    if len(text) > MAX_HEADER_BYTES or size > MAX_PAYLOAD_BYTES:
        raise ProtocolError(f"a frame of {len(text)} + {size} bytes is too large")
    return [_LENGTHS.pack(len(text), size) + text, *payload]


def decode_header(text: bytes) -> dict[str, Any]:
    """Read a frame's header.

    Raises:
        ProtocolError: it is no JSON object.
    """
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ProtocolError("the engine process sent a header that is no JSON") from error
    if not isinstance(header, dict):
        raise ProtocolError("the engine process sent a header that is no JSON object")
    return header


def clean_text(value: object, limit: int) -> str:
    """Give a stranger's value as text that can be encoded: JSON can hold halves of surrogate pairs, UTF-8 cannot."""
    return str(value)[:limit].encode("utf-8", "replace").decode()


async def read_frame(reader: asyncio.StreamReader, max_payload: int) -> tuple[dict[str, Any], bytes]:
    """Read a frame in the daemon.

    Raises:
        ProtocolError: it is malformed or larger than `max_payload` bytes.
        asyncio.IncompleteReadError: the process has gone.
    """
    header_size, payload_size = _LENGTHS.unpack(await reader.readexactly(_LENGTHS.size))
    if header_size > MAX_HEADER_BYTES or payload_size > max_payload:
        raise ProtocolError(f"the engine process announced a frame of {header_size} + {payload_size} bytes")
    header = decode_header(await reader.readexactly(header_size))
    return header, await reader.readexactly(payload_size) if payload_size else b""


class FrameSocket:
    """The engine process's end: blocking, one frame at a time."""

    def __init__(self, connection: socket.socket) -> None:
        """Speak over a connected stream socket."""
        self._socket = connection

    def receive(self) -> tuple[dict[str, Any], memoryview] | None:
        """Give the next frame; None when the daemon has closed."""
        lengths = self._read(_LENGTHS.size)
        if lengths is None:
            return None
        header_size, payload_size = _LENGTHS.unpack(lengths)
        text = self._read(header_size)
        payload = self._read(payload_size)
        if text is None or payload is None:
            return None
        return decode_header(bytes(text)), payload

    def send(self, header: dict[str, Any], *payload: bytes) -> None:
        """Write a frame."""
        parts = encode_frame(header, *payload)
        if sum(map(len, parts)) <= _JOINED_BYTES:  # one call, which wakes the daemon once
            parts = [b"".join(parts)]
        for part in parts:
            self._socket.sendall(part)

    def _read(self, size: int) -> memoryview | None:
        buffer = memoryview(bytearray(size))
        done = 0
        while done < size:
            got = self._socket.recv_into(buffer[done:])
            if not got:
                return None
            done += got
        return buffer
