"""The protobuf envelope of records."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dim_pipelines.discovery.entry import DATA, PUBLIC_KEY, SEQUENCE, VALUE, read_entry, write_entry
from dim_pipelines.errors import RecordForged

VALUES = st.fixed_dictionaries({DATA: st.binary(max_size=60), SEQUENCE: st.integers(0, (1 << 64) - 1)})


@given(VALUES)
def test_reads_what_it_wrote(fields: dict[int, int | bytes]) -> None:
    assert read_entry(write_entry(fields)) == fields


@given(st.binary(max_size=200))
def test_garbage_is_read_or_refused(raw: bytes) -> None:
    try:
        fields = read_entry(raw)
    except RecordForged:
        return
    assert all(1 <= number <= DATA for number in fields)


def test_unknown_fields_of_every_kind_are_passed_over() -> None:
    unknown = b"\x60\x05" + b"\x69" + bytes(8) + b"\x75" + bytes(4) + b"\x7a\x03abc"
    assert read_entry(unknown + write_entry({VALUE: b"x"})) == {VALUE: b"x"}


def test_the_last_of_two_counts() -> None:
    assert read_entry(write_entry({VALUE: b"x"}) + write_entry({VALUE: b"y"})) == {VALUE: b"y"}


@pytest.mark.parametrize(
    "raw",
    [
        b"\x00",  # no number
        b"\x0b",  # a group begins
        b"\x0c",
        b"\x0f\x01",
        b"\x08\x01",  # VALUE as a number
        b"\x2a\x01x",  # SEQUENCE as bytes
        bytes((PUBLIC_KEY << 3 | 1,)) + bytes(8),
        bytes((DATA << 3 | 5,)) + bytes(4),
        b"\x0a",  # cut
        b"\x0a\x05abc",
        b"\x0a\xff\xff\xff\xff\x0fabc",
        b"\x69" + bytes(7),
        b"\x28" + b"\xff" * 10,
        b"\x28" + b"\xff" * 9 + b"\x02",  # over 64 bits
        b"\x28" + b"\x80" * 20,
        b"\xf8\xff\xff\xff\xff\x01\x01",  # a field number over 29 bits
    ],
)
def test_what_is_no_entry_is_refused(raw: bytes) -> None:
    with pytest.raises(RecordForged):
        read_entry(raw)
