from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dim_pipelines.content.dag_pb import Link, encode_node
from dim_pipelines.content.links import links
from dim_pipelines.domain.cid import DAG_CBOR, DAG_PB, RAW, Cid
from dim_pipelines.domain.dataset import ShardPage
from dim_pipelines.domain.format import encode_cbor
from dim_pipelines.errors import InputError

A, B, C = (Cid.of(codec, b"x") for codec in (RAW, DAG_PB, DAG_CBOR))


def cbor_links(data: bytes) -> list[Cid]:
    return links(Cid.of(DAG_CBOR, data), data)


def test_a_raw_block_links_to_nothing() -> None:
    data = encode_cbor([A])
    assert links(Cid.of(RAW, data), data) == []


def test_a_dag_pb_block_links_in_order() -> None:
    data = encode_node([Link(C, "b", 1), Link(A, "a", 1), Link(A, "c", 1)], b"")
    assert links(Cid.of(DAG_PB, data), data) == [C, A, A]


def test_a_page_of_shards_links_to_its_shards() -> None:
    page = ShardPage(shards=[(A, 10), (B, 7)])
    assert links(page.cid(), page.encode()) == [A, B]


def test_bytes_that_look_like_a_link_are_none() -> None:
    """DIM writes no such byte string, but somebody else may."""
    nested = encode_cbor({"inner": [B]})
    bare = b"\x58\x24" + B
    data = b"\x84" + bare + encode_cbor(nested) + encode_cbor("\u0001q") + encode_cbor(A)
    assert cbor_links(data) == [A]


values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**64), 2**64 - 1),
        st.floats(allow_nan=False, allow_infinity=False),
        st.binary(max_size=300),
        st.text(max_size=30),
        st.sampled_from([A, B, C]),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=30), st.dictionaries(st.text(max_size=5), inner, max_size=5)),
    max_leaves=40,
)


def walk(value: Any) -> list[Cid]:
    if isinstance(value, Cid):
        return [value]
    if isinstance(value, list):
        return [cid for item in value for cid in walk(item)]
    if isinstance(value, dict):
        return [cid for item in value.values() for cid in walk(item)]
    return []


@settings(max_examples=60)
@given(values)
def test_law_every_link_is_found_and_nothing_else(value: Any) -> None:
    assert sorted(cbor_links(encode_cbor(value))) == sorted(walk(value))


@given(st.binary(max_size=200))
def test_law_any_bytes_give_links_or_an_input_error(data: bytes) -> None:
    for codec in (DAG_PB, DAG_CBOR):
        try:
            links(Cid.of(codec, data), data)
        except InputError:
            continue


@pytest.mark.parametrize(
    "data",
    [
        b"\x81" * 100_000 + b"\x01",  # a hundred thousand levels
        b"\x9b" + b"\xff" * 8,  # more items than memory
        b"\x5b" + b"\x7f" * 8,
        b"\xd8\x2a\x58\x23\x00\x12\x20" + bytes(32),  # a CIDv0
        b"\xd8\x2a\x41\x00",
        b"\xc1\x01",  # another tag
        b"\xbf\xff",  # indefinite length
        encode_cbor([A])[:-1],
    ],
)
def test_refuses_what_is_malformed_or_foreign(data: bytes) -> None:
    with pytest.raises(InputError):
        cbor_links(data)
