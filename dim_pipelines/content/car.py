"""CAR files: many blocks in one body, the form in which they travel to Kubo.

Source: https://ipld.io/specs/transport/car/carv1/.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from dim_pipelines.content.dag_pb import varint
from dim_pipelines.content.store import Block
from dim_pipelines.domain.cid import Cid
from dim_pipelines.domain.format import encode_cbor


def encode_car(blocks: Iterable[Block], roots: Sequence[Cid]) -> Iterator[bytes]:
    """Give the parts of a CARv1 file: the header, then each block's head and its data, uncopied."""
    header = encode_cbor({"roots": list(roots), "version": 1})
    yield varint(len(header)) + header
    for block in blocks:
        yield varint(len(block.cid) + len(block.data)) + block.cid
        yield block.data
