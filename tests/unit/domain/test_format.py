from __future__ import annotations

import re
from typing import Any, ClassVar

import libipld
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import model_validator

from dim_pipelines.domain.cid import DAG_CBOR, DAG_PB, RAW, Cid
from dim_pipelines.domain.dataset import DeadPage, ShardPage
from dim_pipelines.domain.format import Format, decode_cbor, encode_cbor
from dim_pipelines.domain.work import ModelUse
from dim_pipelines.errors import InputError

LINK = Cid.of(RAW, b"x")

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
foreign = st.binary(max_size=80).flatmap(
    lambda tail: st.sampled_from([b"\x01\x55\x00", b"\x12\x20", b"\x01\x71\x12\x20", b"\x01\x02\x1b\x20"]).map(
        lambda start: start + tail
    )
)
leaves = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False).map(lambda number: number + 0.0)
    | texts
    | st.binary(max_size=70)
    | foreign
    | st.sampled_from([LINK, Cid.of(DAG_PB, b"y")])
)
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(texts, inner, max_size=5), max_leaves=20
)


def links_in(data: bytes) -> int:
    """Count tag 42 with its fixed head: what a pin would follow."""
    return len(re.findall(b"\xd8\x2a\x58\x25\x00\x01[\x55\x70\x71]\x12\x20", data))


@given(values)
def test_values_come_back_as_they_were(value: object) -> None:
    assert decode_cbor(encode_cbor(value)) == value


@given(values)
def test_encoding_is_the_canonical_one(value: object) -> None:
    # libipld refuses what is not canonical, and encodes what holds no CID look-alike to the same bytes
    data = encode_cbor(value)
    assert encode_cbor(decode_cbor(data)) == data


@given(values.filter(lambda value: not _has_bytes(value)))
def test_without_bytes_libipld_gives_the_same_bytes(value: object) -> None:
    assert encode_cbor([value, b"\x01\x55\x00\x00"])[1:-5] == libipld.encode_dag_cbor(value)


def _has_bytes(value: object) -> bool:
    if isinstance(value, dict):
        return any(_has_bytes(item) for item in value.values())
    if isinstance(value, list):
        return any(_has_bytes(item) for item in value)
    return isinstance(value, bytes)


def test_a_cid_is_a_link_and_comes_back_as_its_bytes() -> None:
    data = encode_cbor({"link": LINK, "plain": b"x"})
    assert links_in(data) == 1
    assert decode_cbor(data) == {"link": bytes(LINK), "plain": b"x"}


def test_plain_bytes_that_are_a_whole_cid_of_ours_are_a_link() -> None:
    # links of unknown optional fields are decoded as plain bytes and must be links again
    assert encode_cbor(bytes(LINK)) == encode_cbor(LINK)


@pytest.mark.parametrize(
    "odd",
    [
        b"\x12\x20" + bytes(32),  # the form of a CIDv0
        b"\x01\x55\x00\x00",  # an identity CID
        b"\x01\x55\x12\x20" + bytes(60),  # begins like a CID of ours, longer
        b"\x01\x02\x1b\x1c" + bytes(28),  # a public key of 32 bytes can look like this
        b"\x01\x90\x01\x12\x20" + bytes(31),
    ],
)
@pytest.mark.parametrize("around", [lambda item: item, lambda item: [LINK, item], lambda item: {"k": {"z": item}}])
def test_bytes_that_look_like_a_foreign_cid_stay_bytes(odd: bytes, around: Any) -> None:
    data = encode_cbor(around(odd))
    assert b"\xd8\x2a" not in data.replace(encode_cbor(LINK), b"")
    assert odd in data


@pytest.mark.parametrize("size", [0, 23, 24, 255, 256, 65_535, 65_536])
def test_heads_of_every_width_beside_a_look_alike(size: int) -> None:
    value = {"bytes": b"\x01\x55\x00\x00", "list": [0] * size, "text": "t" * size, "more": b"\x01" + bytes(size)}
    assert decode_cbor(encode_cbor(value)) == value


@pytest.mark.parametrize(
    "value",
    [
        float("nan"),
        float("inf"),
        2**64,
        -(2**64) - 1,
        {1: 2},
        {1: b"\x01\x55\x00\x00"},
        {"a": object()},
        "\ud800",
    ],
)
def test_what_dag_cbor_cannot_hold_is_an_input_error(value: object) -> None:
    with pytest.raises(InputError, match="cannot be written as dag-cbor"):
        encode_cbor(value)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x81\x01x",
        b"\xa2\x61b\x01\x61a\x02",
        b"\xa2\x61a\x01\x61a\x02",
        b"\x9b\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\x81" * 100_000,
        b"\xf9\x7e\x00",
        b"\xd8\x2a\x41\x00",
        b"\x61\xff",
    ],
)
def test_bytes_that_are_no_canonical_cbor_are_an_input_error(data: bytes) -> None:
    with pytest.raises(InputError, match="not dag-cbor"):
        decode_cbor(data)


class Sample(Format):
    kind_name: ClassVar[str] = "test/sample"
    number: int
    maybe: int | None = None


def test_an_absent_optional_is_left_out() -> None:
    assert decode_cbor(Sample(number=1).encode()) == {"v": 1, "kind": "test/sample", "number": 1}


def test_an_explicit_kind_is_kept() -> None:
    assert Sample(number=1, kind="other").kind == "other"


def test_a_none_inside_parameters_is_kept() -> None:
    use = ModelUse(model=LINK, parameters={"a": None})
    assert use.model_dump(exclude_none=True)["parameters"] == {"a": None}


def test_an_unknown_optional_is_kept_with_its_links() -> None:
    data = encode_cbor({"v": 1, "kind": "test/sample", "number": 1, "later": {"link": LINK, "text": "t"}})
    assert Sample.decode(data).encode() == data
    assert Sample.decode(data).cid() == Cid.of(DAG_CBOR, data)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1], "expected a test/sample, found 'list'"),
        ({"kind": "dim/work", "v": 1}, "expected a test/sample, found 'dim/work'"),
        ({"v": 1}, "expected a test/sample, found None"),
        ({"kind": "test/sample", "v": 2}, "test/sample has version 2, this DIM reads version 1"),
        ({"kind": "test/sample"}, "test/sample has version None"),
        ({"kind": "test/sample", "v": 1}, "test/sample is malformed at number: Field required"),
        ({"kind": "test/sample", "v": 1, "number": "x"}, "test/sample is malformed at number: "),
    ],
)
def test_another_kind_version_or_shape_is_refused(value: object, message: str) -> None:
    with pytest.raises(InputError) as caught:
        Sample.decode(encode_cbor(value))
    assert caught.value.message.startswith(message)


class Strict(Sample):
    kind_name: ClassVar[str] = "test/strict"

    @model_validator(mode="after")
    def _never(self) -> Strict:
        raise ValueError("never right")


def test_an_error_of_the_whole_is_at_its_root() -> None:
    with pytest.raises(InputError, match="test/strict is malformed at its root: Value error, never right"):
        Strict.decode(encode_cbor({"kind": "test/strict", "v": 1, "number": 1}))


def test_pages_refuse_what_is_no_cid() -> None:
    with pytest.raises(InputError, match=r"dim/shards is malformed at shards\.0\.0: "):
        ShardPage.decode(encode_cbor({"v": 1, "kind": "dim/shards", "shards": [[b"x", 1]]}))


def test_ids_keep_their_kind() -> None:
    page = DeadPage(ids=[1, "1", -5])
    assert DeadPage.decode(page.encode()).ids == [1, "1", -5]
