"""The check that every store makes before it stores or gives out a block."""

from __future__ import annotations

from collections.abc import Iterable

from dim_pipelines.content.dag_pb import decode_node
from dim_pipelines.content.store import MAX_BLOCK_BYTES, Block
from dim_pipelines.domain.cid import DAG_CBOR, DAG_PB, Cid
from dim_pipelines.domain.format import decode_cbor
from dim_pipelines.errors import ContentMismatch, InputError


def check_block(cid: Cid, data: bytes, size: int | None = None) -> bytes:
    """Give the data back if it is what the CID names.

    Args:
        cid: the name.
        data: what was found under it.
        size: its length where that is known; tells truncation apart in the message.

    Raises:
        ContentMismatch: the data is something else, or a part of it.
    """
    if size is not None and len(data) != size:
        raise ContentMismatch(f"block {cid} was cut: {len(data)} of {size} bytes")
    if not cid.names(data):
        raise ContentMismatch(f"the {len(data)} bytes found for block {cid} are not what it names")
    return data


def check_blocks(blocks: Iterable[Block]) -> None:
    """Check blocks that are to be stored.

    Raises:
        ContentMismatch: one is not what its CID names, is larger than a block may be, or is not of the codec that
            its CID says (Kubo refuses such a block, so no store takes it).
    """
    for block in blocks:
        if len(block.data) > MAX_BLOCK_BYTES:
            raise ContentMismatch(f"block {block.cid} has {len(block.data)} bytes, more than {MAX_BLOCK_BYTES}")
        check_block(block.cid, block.data)
        try:
            if block.cid.codec == DAG_CBOR:
                decode_cbor(block.data)
            elif block.cid.codec == DAG_PB:
                decode_node(block.data)
        except InputError as error:
            raise ContentMismatch(f"block {block.cid} is malformed: {error.message}") from error
