"""Which blocks a block links to: the one question that pins and collections ask of content."""

from __future__ import annotations

from typing import Final

from dim_pipelines.content.dag_pb import decode_node
from dim_pipelines.domain.cid import DAG_PB, RAW, Cid
from dim_pipelines.domain.format import decode_cbor
from dim_pipelines.errors import InputError

_TAG_42: Final = b"\xd8\x2a"
_LINK_HEAD: Final = b"\xd8\x2a\x58\x25\x00"
"""Tag 42, a byte string of 37 bytes, and the identity multibase prefix: a link to a 36-byte CID."""


def links(cid: Cid, data: bytes) -> list[Cid]:
    """Give what the block links to, in the order in which it does, repetitions included.

    A raw block links to nothing. The bytes are not checked against the CID: the store has done that.

    Raises:
        InputError: the bytes are not of the CID's codec, or link to something that DIM does not read.
    """
    if cid.codec == RAW:
        return []
    if cid.codec == DAG_PB:
        return [link.cid for link in decode_node(data).links]
    return _cbor_links(data)


def _cbor_links(data: bytes) -> list[Cid]:
    # The library gives a link and a byte string of 36 bytes as the same thing, so it only checks the form here.
    # What it accepts has definite lengths and canonical heads, and heads can then be read straight through.
    decode_cbor(data)
    found: list[Cid] = []
    position, end = 0, len(data)
    while position < end:
        if data.startswith(_LINK_HEAD, position):
            found.append(Cid(data[position + 5 : position + 41]))
            position += 41
            continue
        head = data[position]
        major, info = head >> 5, head & 31
        if major == 6:
            what = "a CID of another kind" if data.startswith(_TAG_42, position) else f"tag {info}"
            raise InputError(f"dag-cbor block links to {what}", hint="DIM reads CIDv1 with sha2-256 only")
        position += 1
        length = info
        if info >= 24:
            width = 1 << (info - 24)
            length = int.from_bytes(data[position : position + width], "big")
            position += width
        if major in (2, 3):
            position += length
    return found
