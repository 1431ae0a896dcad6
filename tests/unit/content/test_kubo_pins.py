from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dim_pipelines.content.kubo_pins import (
    FRESH,
    GROUP,
    WRAPPER,
    PinName,
    group_block,
    group_cids,
    label_filter,
    wrapper_block,
)
from dim_pipelines.content.links import links
from dim_pipelines.content.store import Pin
from dim_pipelines.domain.cid import DAG_CBOR, DAG_PB, RAW, Cid
from dim_pipelines.domain.format import encode_cbor
from dim_pipelines.errors import InputError

ROOT = Cid.of(DAG_PB, b"root")
words = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
pins = st.builds(Pin, words, words, st.none() | st.integers(0, 2**50))


@given(pins)
def test_law_a_name_comes_back(pin: Pin) -> None:
    for name in (PinName(WRAPPER, pin, ROOT), PinName(GROUP, pin), PinName(FRESH, pin)):
        assert PinName.parse(name.text()) == name
        assert len(name.text()) <= 255


@given(pins, words)
def test_law_the_filter_for_labels_is_in_the_names(pin: Pin, more: str) -> None:
    longer = Pin(pin.owner, pin.label + more)
    assert label_filter(pin.label) in PinName(GROUP, longer).text()


@given(st.text(max_size=60))
def test_law_any_text_is_a_name_or_none(text: str) -> None:
    PinName.parse(text)
    assert PinName.parse(f"dim:r:{text}") is None


@pytest.mark.parametrize(
    "text", ["", "my pin", "dim:", "dim:g:::", "dim:x::::", "dim:r::5:a:b", f"dim:g:{ROOT}:5:a:b", "dim:g::soon:a:b"]
)
def test_names_of_others_are_none_of_ours(text: str) -> None:
    assert PinName.parse(text) is None


def test_refuses_a_holder_that_does_not_fit() -> None:
    with pytest.raises(InputError):
        PinName(GROUP, Pin("local", "x" * 250)).text()
    longest = f"signature/{ROOT}"
    assert len(PinName(WRAPPER, Pin("local", longest, 2**45), ROOT).text()) < 255


def test_a_group_names_blocks_of_every_codec_without_linking_further() -> None:
    cids = [Cid.of(codec, b"x") for codec in (RAW, DAG_PB, DAG_CBOR)]
    group = group_block(cids, Pin("local", "x"))
    assert group_cids(group.data) == cids
    assert [cid.codec for cid in links(group.cid, group.data)] == [RAW] * 3
    assert [cid.digest for cid in links(group.cid, group.data)] == [cid.digest for cid in cids]


def test_groups_and_wrappers_of_two_holders_are_two() -> None:
    one, two = Pin("local", "a"), Pin("local", "b")
    assert group_block([ROOT], one) != group_block([ROOT], two)
    assert wrapper_block(ROOT, one) != wrapper_block(ROOT, two)
    assert wrapper_block(ROOT, Pin("local", "a", 5)) == wrapper_block(ROOT, one)
    assert links(wrapper_block(ROOT, one).cid, wrapper_block(ROOT, one).data) == [ROOT]


@pytest.mark.parametrize(
    "value",
    [
        [],
        {"kind": "dim/pin"},
        {"kind": "dim/held", "blocks": [], "codecs": "x"},
        {"kind": "dim/held", "blocks": [ROOT], "codecs": b""},
        {"kind": "dim/held", "blocks": [ROOT], "codecs": b"\x00"},
        {"kind": "dim/held", "blocks": [b"short"], "codecs": b"\x55"},
    ],
)
def test_refuses_what_is_no_group(value: object) -> None:
    with pytest.raises(InputError):
        group_cids(encode_cbor(value))
