from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dim_pipelines.content.dag_pb import (
    FILE,
    HAMT_SHARD,
    Link,
    Node,
    decode_node,
    decode_unixfs,
    encode_directory,
    encode_file,
    encode_hamt,
    encode_node,
    varint,
)
from dim_pipelines.domain.cid import DAG_PB, RAW, Cid
from dim_pipelines.errors import InputError

LEAF = Cid.of(RAW, b"leaf")
names = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
sizes = st.integers(0, 2**64 - 1)


def test_the_empty_folder_is_the_one_that_everybody_knows() -> None:
    assert str(Cid.of(DAG_PB, encode_node([], encode_directory()))) == (
        "bafybeiczsscdsbs7ffqz55asqdf3smv6klcw3gofszvwlyarci47bgf354"
    )


@given(st.lists(st.builds(Link, st.just(LEAF), names, sizes), max_size=8), st.binary(max_size=50))
def test_law_a_node_comes_back(links: list[Link], data: bytes) -> None:
    assert decode_node(encode_node(links, data)) == Node(tuple(links), data)


@given(sizes, st.lists(sizes, max_size=8))
def test_law_a_file_message_comes_back(size: int, blocks: list[int]) -> None:
    message = decode_unixfs(encode_file(size, blocks))
    assert (message.kind, message.size, list(message.block_sizes)) == (FILE, size, blocks)


def test_a_hamt_message_comes_back() -> None:
    message = decode_unixfs(encode_hamt(b"\x01\x02", 256, 0x22))
    assert (message.kind, message.data, message.fanout) == (HAMT_SHARD, b"\x01\x02", 256)


def test_names_that_are_not_utf8_survive() -> None:
    link = Link(LEAF, b"caf\xe9".decode("utf-8", "surrogateescape"), 4)
    assert decode_node(encode_node([link], b"")).links == (link,)


def test_data_may_stand_before_the_links() -> None:
    links_first = encode_node([Link(LEAF, "a", 1)], b"d")
    assert decode_node(links_first[-3:] + links_first[:-3]) == decode_node(links_first)


def test_sizes_of_blocks_may_be_packed_and_times_are_passed_over() -> None:
    packed = b"\x08\x02" + b"\x22\x03\x01\x80\x01" + b"\x38\xa4\x03" + b"\x42\x02\x08\x01"
    assert decode_unixfs(packed).block_sizes == (1, 128)


@pytest.mark.parametrize(
    "block",
    [
        b"\x0a\x05abc",  # ends beyond the block
        b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",  # a number of eleven bytes
        b"\x0a",  # no length
        b"\x0b",  # a group
        b"\x0a\x01a\x0a\x01b",  # data twice
        b"\x1a\x01a",  # an unknown field
        b"\x12\x02\x12\x00",  # a link without a CID
        b"\x12\x04\x0a\x02Qm",  # a CID that is none
        b"\x12\x26" + b"\x0a\x22" + b"\x12\x20" + bytes(32),  # a CIDv0
        b"\x12\x28" + b"\x0a\x26" + LEAF + b"\x20\x01",  # a link with an unknown field
    ],
)
def test_refuses_what_is_no_node(block: bytes) -> None:
    with pytest.raises(InputError):
        decode_node(block)


@given(st.binary(max_size=200))
def test_law_any_bytes_are_a_node_or_an_input_error(data: bytes) -> None:
    for decode in (decode_node, decode_unixfs):
        try:
            decode(data)
        except InputError:
            continue


def test_a_message_without_a_type_is_refused() -> None:
    with pytest.raises(InputError):
        decode_unixfs(b"")


def test_varint() -> None:
    assert [varint(number) for number in (0, 127, 128, 300)] == [b"\x00", b"\x7f", b"\x80\x01", b"\xac\x02"]
