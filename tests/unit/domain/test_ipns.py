from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dim_pipelines.domain.ipns import ipns_name, public_of
from dim_pipelines.errors import InputError

KEYS = st.binary(min_size=32, max_size=32)


def test_a_name_is_the_number_of_its_key_in_base_36() -> None:
    public = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
    number = int.from_bytes(b"\x01\x72\x00\x24\x08\x01\x12\x20" + public, "big")
    assert int(ipns_name(public)[1:], 36) == number
    assert ipns_name(public).startswith("k51qzi5uqu5d")


@given(KEYS)
def test_a_name_is_its_key(public: bytes) -> None:
    name = ipns_name(public)
    assert len(name) == 62
    assert public_of(name) == public_of(f"/ipns/{name}") == public


@given(KEYS, st.data())
def test_a_name_has_one_spelling(public: bytes, data: st.DataObject) -> None:
    name = ipns_name(public)
    place = data.draw(st.integers(0, len(name) - 1))
    other = name[:place] + data.draw(st.sampled_from("0aZ_- 9z")) + name[place + 1 :]
    for text in (f"k0{name[1:]}", f"{name}0", name[:-1], other):
        if text != name:
            try:
                assert public_of(text) != public
            except InputError:
                continue
            assert ipns_name(public_of(text)) == text


@pytest.mark.parametrize("text", ["", "k", "k0", "/ipns/", "12D3KooW", "k" + "1" * 100, "k51QZI", "bafy", "k5_1"])
def test_what_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        public_of(text)
