from __future__ import annotations

import datetime
import decimal
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dim_pipelines.content import shards
from dim_pipelines.content.shards import (
    MAX_SHARD_BYTES,
    canonical_type,
    columns_of,
    decode_shard,
    encode_shard,
)
from dim_pipelines.errors import InputError

NANS = [np.uint32(bits).view(np.float32).item() for bits in (0x7FC00000, 0xFFC00000)]

LEAVES: dict[pa.DataType, st.SearchStrategy[Any]] = {
    pa.int8(): st.integers(-128, 127),
    pa.int64(): st.integers(-(2**63), 2**63 - 1),
    pa.uint64(): st.integers(0, 2**64 - 1),
    pa.float16(): st.sampled_from([0.0, -0.0, 1.5, math.inf, *NANS]),
    pa.float32(): st.floats(width=32) | st.sampled_from(NANS),
    pa.float64(): st.floats() | st.sampled_from(NANS),
    pa.bool_(): st.booleans(),
    pa.string(): st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    pa.binary(): st.binary(max_size=20),
    pa.binary(3): st.binary(min_size=3, max_size=3),
    pa.date32(): st.dates(),
    pa.timestamp("us", "UTC"): st.datetimes(
        datetime.datetime(1970, 1, 1), datetime.datetime(2100, 1, 1), timezones=st.just(datetime.UTC)
    ),
    pa.decimal128(9, 2): st.integers(-9999, 9999).map(lambda cents: decimal.Decimal(cents).scaleb(-2)),
    pa.null(): st.none(),
}


@st.composite
def types(draw: st.DrawFn, depth: int = 2) -> tuple[pa.DataType, st.SearchStrategy[Any]]:
    kind = draw(st.sampled_from(["leaf", "leaf", "list", "fixed", "struct"] if depth else ["leaf"]))
    if kind == "leaf":
        type_ = draw(st.sampled_from(list(LEAVES)))
        return type_, st.none() | LEAVES[type_]
    inner, values = draw(types(depth=depth - 1))
    if kind == "list":
        return pa.list_(inner), st.none() | st.lists(values, max_size=4)
    if kind == "fixed":
        size = draw(st.integers(1, 3))
        return pa.list_(inner, size), st.none() | st.lists(values, min_size=size, max_size=size)
    other, more = draw(types(depth=depth - 1))
    return pa.struct([("a", inner), ("b", other)]), st.none() | st.fixed_dictionaries({"a": values, "b": more})


@st.composite
def columns(draw: st.DrawFn) -> tuple[pa.DataType, list[Any], list[Any], list[Any]]:
    type_, values = draw(types())
    lists = st.lists(values, max_size=12)
    return type_, draw(lists), draw(lists), draw(lists)


def encoded(column: pa.Array | pa.ChunkedArray) -> bytes:
    return encode_shard(pa.table({"column": column}))


@given(columns(), st.data())
@settings(max_examples=80)
def test_equal_values_are_equal_bytes_however_they_lie_in_memory(
    column: tuple[pa.DataType, list[Any], list[Any], list[Any]], data: st.DataObject
) -> None:
    type_, before, rows, after = column
    plain = pa.array(rows, type_)
    cut = data.draw(st.integers(0, len(rows)))
    slice_ = pa.array(before + rows + after, type_).slice(len(before), len(rows))
    chunks = pa.chunked_array([slice_[:cut], plain[cut:]], type_)
    assert encoded(slice_) == encoded(plain) == encoded(chunks)


@given(columns())
@settings(max_examples=40)
def test_a_shard_holds_the_values_and_nothing_else(
    column: tuple[pa.DataType, list[Any], list[Any], list[Any]],
) -> None:
    type_, _, rows, _ = column
    shard = decode_shard(encoded(pa.array(rows, type_)))
    assert repr(shard.column(0).to_pylist()) == repr(pa.array(rows, type_).to_pylist())
    assert encode_shard(shard) == encoded(pa.array(rows, type_))


@given(st.lists(st.none() | st.sampled_from(["red", "green", "blue"]), max_size=12))
def test_the_encoding_of_a_column_does_not_show(values: list[str | None]) -> None:
    plain = encoded(pa.array(values, pa.string()))
    for type_ in (pa.large_string(), pa.string_view()):
        assert encoded(pa.array(values, type_)) == plain
    array = pa.array(values, pa.string())
    assert encoded(array.dictionary_encode()) == plain
    other = pa.DictionaryArray.from_arrays(
        pa.array([None if value is None else ["blue", "green", "red"].index(value) for value in values], pa.int8()),
        pa.array(["blue", "green", "red"], pa.large_string()),
    )
    assert encoded(other) == plain


@pytest.mark.parametrize(
    "type_",
    [
        pa.large_list(pa.large_string()),
        pa.list_view(pa.string()),
        pa.large_list_view(pa.string()),
        pa.list_(pa.field("element", pa.string(), nullable=False, metadata={"a": "b"})),
        pa.list_(pa.dictionary(pa.int8(), pa.string())),
    ],
)
def test_every_kind_of_list_is_a_list(type_: pa.DataType) -> None:
    values = [["a"], [], ["b", "c"]]
    assert encoded(pa.array(values, type_)) == encoded(pa.array(values, pa.list_(pa.string())))


def test_names_of_extensions_flags_and_metadata_do_not_show() -> None:
    plain = pa.table({"x": pa.array([1, 2], pa.int64())})
    marked = pa.table(
        {"x": pa.array([1, 2], pa.int64())},
        schema=pa.schema([pa.field("x", pa.int64(), nullable=False, metadata={"k": "v"})], metadata={"pandas": "{}"}),
    )
    assert encode_shard(marked) == encode_shard(plain)
    assert decode_shard(encode_shard(marked)).schema.metadata is None
    storage = pa.array([[1.0, 2.0]], pa.list_(pa.float32(), 2))
    tensor = pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.float32(), (2,)), storage)
    assert encoded(tensor) == encoded(storage)
    uuids = pa.array([b"0123456789abcdef"], pa.binary(16))
    assert encoded(pa.ExtensionArray.from_storage(pa.uuid(), uuids)) == encoded(uuids)


@pytest.mark.parametrize(
    ("type_", "unsigned"), [(np.float16, np.uint16), (np.float32, np.uint32), (np.float64, np.uint64)]
)
@pytest.mark.parametrize("wrap", [lambda a: a, lambda a: pa.FixedSizeListArray.from_arrays(a, 1)])
def test_there_is_one_nan(type_: Any, unsigned: Any, wrap: Callable[[pa.Array], pa.Array]) -> None:
    odd = np.array([1.5, np.nan, -0.0], dtype=type_)
    odd.view(unsigned)[1] |= unsigned(1) << unsigned(8 * odd.itemsize - 1) | unsigned(5)
    plain = np.array([1.5, np.nan, -0.0], dtype=type_)
    assert odd.tobytes() != plain.tobytes()
    assert encoded(wrap(pa.array(odd))) == encoded(wrap(pa.array(plain)))


@pytest.mark.parametrize("rows", [0, 1, 5])
@pytest.mark.parametrize("bottom", [pa.float16(), pa.float32(), pa.int8(), pa.uint64()])
def test_whole_lists_of_numbers_have_the_bytes_of_the_long_way(
    rows: int, bottom: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = np.arange(3 * 2 * (rows + 3)).astype(bottom.to_pandas_dtype())
    if numbers.dtype.kind == "f":
        numbers[7] = np.nan
    inner = pa.FixedSizeListArray.from_arrays(pa.array(numbers, bottom), 2)
    columns = [part.slice(1, rows) for part in (inner, pa.FixedSizeListArray.from_arrays(inner, 3))]
    short = [encoded(column) for column in columns]
    monkeypatch.setattr(shards, "_copied", lambda array, target: None)
    assert short == [encoded(column) for column in columns]


def test_negative_zero_stays_what_it_is() -> None:
    assert encoded(pa.array([0.0])) != encoded(pa.array([-0.0]))


def test_garbage_below_nulls_does_not_show() -> None:
    mask = np.array([False, True, False])
    first, second = (pa.array(np.array([1, garbage, 3]), mask=mask) for garbage in (0, 99))
    assert encoded(first) == encoded(second)
    lists = [pa.FixedSizeListArray.from_arrays(pa.array([1, 2, g, g, 5, 6]), 2, mask=pa.array(mask)) for g in (0, 9)]
    assert encoded(lists[0]) == encoded(lists[1])
    structs = [pa.StructArray.from_arrays([pa.array([1, g, 3])], names=["a"], mask=pa.array(mask)) for g in (0, 9)]
    assert encoded(structs[0]) == encoded(structs[1])


@pytest.mark.parametrize("column", [pa.array(["row-2", "SECRET", "row-4"]), pa.array([b"row-2", b"SECRET", b"row-4"])])
def test_no_byte_of_a_neighbour_is_in_a_shard(column: pa.Array) -> None:
    for part in (column[:1], column[2:], pa.array([["row"], ["SECRET"]])[:1]):
        assert b"SECRET" not in encoded(part)
    numbers = pa.array([1, 0x5345435245543131, 3], pa.int64())
    assert b"11TERCES" in encoded(numbers)
    assert b"11TERCES" not in encoded(numbers[:1])
    assert b"11TERCES" not in encoded(numbers[2:])


def test_an_empty_shard_has_one_form() -> None:
    whole = pa.table({"row": pa.array([1], pa.int64()), "x": pa.array(["a"])})
    assert encode_shard(whole.slice(1)) == encode_shard(whole.schema.empty_table())
    assert encoded(pa.chunked_array([], pa.string())) == encoded(pa.array([], pa.string()))


@pytest.mark.parametrize(
    "type_",
    [
        pa.map_(pa.string(), pa.int8()),
        pa.run_end_encoded(pa.int32(), pa.int8()),
        pa.list_(pa.int8(), 0),
        pa.list_(pa.map_(pa.string(), pa.int8())),
    ],
)
def test_types_without_a_canonical_form_are_refused(type_: pa.DataType) -> None:
    with pytest.raises(InputError, match="cannot go into a shard"):
        canonical_type(type_)


def test_two_columns_of_one_name_are_refused() -> None:
    with pytest.raises(InputError, match="two columns have one name: x, x"):
        encode_shard(pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["x", "x"]))


def test_a_schema_is_described_in_canonical_types() -> None:
    schema = pa.schema([("id", pa.large_string()), ("x", pa.dictionary(pa.int8(), pa.string()))])
    assert [(column.name, column.type) for column in columns_of(schema)] == [("id", "string"), ("x", "string")]


GOOD = encode_shard(pa.table({"row": pa.array([1, 2], pa.int64()), "x": pa.array(["ab", "c"])}))


def batches(*tables: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, tables[0].schema) as writer:
        for table in tables:
            writer.write_table(table)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize("data", [b"", b"junk", GOOD[:100], GOOD[: len(GOOD) // 2], b"\xff" * 64])
def test_what_is_no_shard_is_an_input_error(data: bytes) -> None:
    with pytest.raises(InputError):
        decode_shard(data)


def test_a_shard_is_one_record_batch() -> None:
    one = pa.table({"row": [1]})
    with pytest.raises(InputError, match="one record batch, found 2"):
        decode_shard(batches(one, one))
    with pytest.raises(InputError, match="one record batch, found 0"):
        decode_shard(batches(one.schema.empty_table()))


@pytest.mark.parametrize(
    "column",
    [
        pa.array(["a"]).dictionary_encode(),
        pa.array(["a"], pa.large_string()),
        pa.array([[]], pa.list_(pa.int8(), 0)),
        pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int8())),
    ],
)
def test_columns_that_no_shard_has_are_refused_before_they_are_read(column: pa.Array) -> None:
    with pytest.raises(InputError):
        decode_shard(batches(pa.table({"row": column})))


@pytest.mark.parametrize("codec", ["zstd", "lz4"])
@pytest.mark.parametrize("legacy", [False, True])
def test_a_compressed_shard_is_refused_before_it_is_expanded(
    codec: str, legacy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression=codec, use_legacy_format=legacy)
    with pa.ipc.new_stream(sink, pa.schema([("row", pa.int64())]), options=options) as writer:
        writer.write_batch(pa.record_batch({"row": np.zeros(1 << 22, np.int64)}))
    before = pa.total_allocated_bytes()
    monkeypatch.setattr(pa.ipc, "open_stream", None)  # nothing is read
    with pytest.raises(InputError, match="compressed"):
        decode_shard(sink.getvalue().to_pybytes())
    assert pa.total_allocated_bytes() - before < 1 << 20


def test_a_shard_compressed_as_arrow_0_17_did_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(metadata_version=pa.ipc.MetadataVersion.V4)
    rows = pa.record_batch({"row": [1 << 40]})
    with pa.ipc.new_stream(sink, rows.schema, options=options) as writer:
        writer.write_batch(rows, custom_metadata={"ARROW:experimental_compression": "ZSTD"})
    monkeypatch.setattr(pa.ipc, "open_stream", None)  # nothing is read
    with pytest.raises(InputError, match="compressed"):
        decode_shard(sink.getvalue().to_pybytes())


def test_two_columns_of_one_name_are_refused_when_read() -> None:
    with pytest.raises(InputError, match="two columns of a shard have one name"):
        decode_shard(batches(pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["x", "x"])))


def test_a_shard_has_a_largest_size() -> None:
    with pytest.raises(InputError, match="the limit is"):
        decode_shard(bytes(MAX_SHARD_BYTES + 1))


@given(st.integers(0, len(GOOD) - 1), st.integers(1, 255))
@settings(max_examples=150)
def test_no_altered_byte_reaches_outside_the_shard(position: int, flip: int) -> None:
    data = bytearray(GOOD)
    data[position] ^= flip
    try:
        rows = decode_shard(bytes(data))
    except InputError:
        return
    rows.to_pylist()  # every value can be read


@pytest.mark.parametrize(
    ("column", "plain"),
    [
        (pa.array([b"a"], pa.large_binary()), pa.array([b"a"])),
        (pa.array([b"a"], pa.binary_view()), pa.array([b"a"])),
        (
            pa.DictionaryArray.from_arrays(
                pa.array([0], pa.int8()),
                pa.ExtensionArray.from_storage(pa.uuid(), pa.array([b"0123456789abcdef"], pa.binary(16))),
            ),
            pa.array([b"0123456789abcdef"], pa.binary(16)),
        ),
    ],
)
def test_bytes_have_one_form(column: pa.Array, plain: pa.Array) -> None:
    assert encoded(column) == encoded(plain)
