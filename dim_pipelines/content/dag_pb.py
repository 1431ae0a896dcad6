"""dag-pb nodes and the UnixFS message inside them: bytes ↔ values, and nothing else.

Sources: https://ipld.io/specs/codecs/dag-pb/spec/ and https://specs.ipfs.tech/unixfs/. Whatever an
attacker writes into a node ends as InputError; reading costs time and memory linear in the bytes given.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from dim_pipelines.domain.cid import Cid
from dim_pipelines.errors import InputError

RAW_NODE: Final = 0
"""UnixFS type of a leaf in dag-pb (`ipfs add --raw-leaves=false`)."""
DIRECTORY: Final = 1
"""UnixFS type of a folder whose links are its entries."""
FILE: Final = 2
"""UnixFS type of a file, or of a part of one."""
HAMT_SHARD: Final = 5
"""UnixFS type of one node of a folder that is too large for one block."""

_VARINT: Final = 0
_BYTES: Final = 2
_MAX_VARINT_BYTES: Final = 10


@dataclass(frozen=True, slots=True)
class Link:
    """One link of a dag-pb node.

    Attributes:
        cid: what is linked.
        name: the entry's name; empty in a file.
        size: cumulative bytes of every block from there down (Tsize); a claim, never trusted.
    """

    cid: Cid
    name: str
    size: int


@dataclass(frozen=True, slots=True)
class Node:
    """A dag-pb node: its links in order and its data field."""

    links: tuple[Link, ...]
    data: bytes


@dataclass(frozen=True, slots=True)
class UnixFs:
    """The UnixFS message in a node's data field.

    Attributes:
        kind: the UnixFS type.
        data: inline bytes of a file, or the bitmap of a HAMT node.
        size: the file's bytes from here down; None when the message does not say.
        block_sizes: the file bytes below each link, in the order of the links.
        fanout: children of a HAMT node.
    """

    kind: int
    data: bytes = b""
    size: int | None = None
    block_sizes: tuple[int, ...] = ()
    fanout: int | None = None


def varint(number: int) -> bytes:
    """Write an unsigned LEB128 number, as protobuf and CAR files do."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def encode_node(links: Sequence[Link], data: bytes) -> bytes:
    """Write a node in dag-pb's canonical form: links in the given order, then the data."""
    out = bytearray()
    for link in links:
        name = link.name.encode("utf-8", "surrogateescape")
        body = _field(1, link.cid) + _field(2, name) + b"\x18" + varint(link.size)
        out += _field(2, body)
    return bytes(out) + _field(1, data)


def encode_file(size: int, block_sizes: Sequence[int]) -> bytes:
    """Write the UnixFS message of an inner node of a file."""
    return b"\x08\x02\x18" + varint(size) + b"".join(b"\x20" + varint(each) for each in block_sizes)


def encode_directory() -> bytes:
    """Write the UnixFS message of a folder in one block."""
    return b"\x08\x01"


def encode_hamt(bitmap: bytes, fanout: int, hash_type: int) -> bytes:
    """Write the UnixFS message of a node of a sharded folder."""
    return b"\x08\x05" + _field(2, bitmap) + b"\x28" + varint(hash_type) + b"\x30" + varint(fanout)


def decode_node(block: bytes) -> Node:
    """Read a dag-pb block.

    Raises:
        InputError: it is not dag-pb, or links to something that DIM does not read (a CIDv0, another hash).
    """
    links: list[Link] = []
    data: bytes | None = None
    for number, value in _fields(block):
        if number == 2 and isinstance(value, bytes):
            links.append(_decode_link(value))
        elif number == 1 and isinstance(value, bytes) and data is None:
            data = value
        else:
            raise _malformed(f"field {number}")
    return Node(tuple(links), data or b"")


def decode_unixfs(data: bytes) -> UnixFs:
    """Read the UnixFS message of a node.

    Raises:
        InputError: it is not a UnixFS message.
    """
    kind: int | None = None
    content = b""
    size: int | None = None
    fanout: int | None = None
    block_sizes: list[int] = []
    for number, value in _fields(data):
        if number == 2 and isinstance(value, bytes):
            content = value
        elif number == 4 and isinstance(value, bytes):  # packed form of the same list
            block_sizes.extend(_packed(value))
        elif isinstance(value, bytes):
            continue  # a modification time, which means nothing to DIM
        elif number == 1:
            kind = value
        elif number == 3:
            size = value
        elif number == 4:
            block_sizes.append(value)
        elif number == 6:
            fanout = value
    if kind is None:
        raise _malformed("no UnixFS type")
    return UnixFs(kind, content, size, tuple(block_sizes), fanout)


def _decode_link(data: bytes) -> Link:
    cid: Cid | None = None
    name = b""
    size = 0
    for number, value in _fields(data):
        if number == 1 and isinstance(value, bytes) and cid is None:
            cid = Cid(value)
        elif number == 2 and isinstance(value, bytes):
            name = value
        elif number == 3 and isinstance(value, int):
            size = value
        else:
            raise _malformed(f"link field {number}")
    if cid is None:
        raise _malformed("a link without a CID")
    return Link(cid, name.decode("utf-8", "surrogateescape"), size)


def _field(number: int, value: bytes) -> bytes:
    return bytes((number << 3 | _BYTES,)) + varint(len(value)) + value


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    position = 0
    while position < len(data):
        tag, position = _read_varint(data, position)
        if tag & 7 == _VARINT:
            value, position = _read_varint(data, position)
            yield tag >> 3, value
        elif tag & 7 == _BYTES:
            length, position = _read_varint(data, position)
            if length > len(data) - position:
                raise _malformed("a field ends beyond the block")
            yield tag >> 3, bytes(data[position : position + length])
            position += length
        else:
            raise _malformed(f"wire type {tag & 7}")


def _packed(data: bytes) -> Iterator[int]:
    position = 0
    while position < len(data):
        value, position = _read_varint(data, position)
        yield value


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 7 * _MAX_VARINT_BYTES, 7):
        if position >= len(data):
            break
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if not byte & 0x80:
            return value, position
    raise _malformed("a number without an end")


def _malformed(what: str) -> InputError:
    return InputError(f"not a dag-pb node: {what}")
