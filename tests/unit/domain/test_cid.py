from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from dim_pipelines.domain.cid import CODECS, DAG_CBOR, DAG_PB, RAW, Cid, looks_like_cid
from dim_pipelines.errors import InputError

EMPTY = "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku"
"""What `ipfs add --cid-version=1 --raw-leaves` names an empty file."""


def test_the_empty_block_has_the_cid_that_kubo_gives_it() -> None:
    assert str(Cid.of(RAW, b"")) == EMPTY
    assert Cid.parse(EMPTY) == Cid.of(RAW, b"")


@given(st.binary(max_size=200), st.sampled_from(sorted(CODECS)))
def test_text_and_bytes_of_a_cid_lead_back_to_it(data: bytes, codec: int) -> None:
    cid = Cid.of(codec, data)
    assert Cid.parse(str(cid)) == cid
    assert Cid(bytes(cid)) == cid
    assert cid.codec == codec
    assert cid.digest == hashlib.sha256(data).digest()
    assert cid.names(data)
    assert not cid.names(data + b".")


@pytest.mark.parametrize("prefix", ["", "ipfs://", "/ipfs/"])
def test_usual_prefixes_are_read(prefix: str) -> None:
    assert str(Cid.parse(f"{prefix}{EMPTY}")) == EMPTY
    assert looks_like_cid(f"{prefix}{EMPTY}/")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "b",
        "word",
        "bafy!",
        EMPTY.upper(),
        EMPTY[:-1],
        EMPTY + "a",
        "QmbFMke1KXqnYyBBWxB74N4c5SBnJMVAiMNRcGu6x1AwQH",
        f"{EMPTY}/file",
    ],
)
def test_other_text_is_no_cid(text: str) -> None:
    assert not looks_like_cid(text)
    with pytest.raises(InputError):
        Cid.parse(text)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        bytes(36),
        b"\x01\x55\x12\x20" + bytes(31),
        b"\x01\x55\x13\x20" + bytes(32),
        b"\x01\x00\x12\x20" + bytes(32),
        b"\x00\x55\x12\x20" + bytes(32),
    ],
)
def test_other_bytes_are_no_cid(raw: bytes) -> None:
    with pytest.raises(InputError, match="not a CID that DIM reads"):
        Cid(raw)


def test_a_cid_shows_itself_as_text() -> None:
    assert repr(Cid.of(DAG_CBOR, b"x")) == f"Cid('{Cid.of(DAG_CBOR, b'x')}')"


class Holder(BaseModel):
    cid: Cid


def test_values_take_a_cid_its_bytes_or_its_text_and_write_text_into_json() -> None:
    cid = Cid.of(DAG_PB, b"x")
    for given_value in (cid, bytes(cid), str(cid)):
        assert Holder.model_validate({"cid": given_value}).cid == cid
    assert Holder(cid=cid).model_dump_json() == f'{{"cid":"{cid}"}}'
    assert isinstance(Holder(cid=cid).model_dump()["cid"], Cid)


@pytest.mark.parametrize("wrong", [7, b"short", "word", None])
def test_values_refuse_anything_else(wrong: object) -> None:
    with pytest.raises(ValidationError):
        Holder.model_validate({"cid": wrong})
