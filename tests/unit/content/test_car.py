from __future__ import annotations

import libipld
from hypothesis import given
from hypothesis import strategies as st

from dim_pipelines.content.car import encode_car
from dim_pipelines.content.store import Block
from dim_pipelines.domain.cid import DAG_CBOR, Cid
from dim_pipelines.domain.format import encode_cbor


@given(st.lists(st.binary(max_size=300), max_size=20))
def test_law_another_reader_finds_every_block(contents: list[bytes]) -> None:
    encoded = [encode_cbor(data) for data in contents]  # the reader takes dag-cbor alone
    blocks = [Block(Cid.of(DAG_CBOR, data), data) for data in encoded]
    root = Cid.of(DAG_CBOR, b"\xa0")
    header, found = libipld.decode_car(b"".join(encode_car([*blocks, Block(root, b"\xa0")], [root])))
    assert header["roots"] == [bytes(root)]
    assert {bytes(cid): value for cid, value in found.items()} == {
        **{bytes(block.cid): data for block, data in zip(blocks, contents, strict=True)},
        bytes(root): {},
    }
