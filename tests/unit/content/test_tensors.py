from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dim_pipelines.content.tensors import arrow_type, cast, dense, element_type, takes, to_arrow
from dim_pipelines.domain.model import Datatype
from dim_pipelines.errors import InputError


def test_a_column_of_numbers_is_a_vector() -> None:
    values, shape, bad = dense(pa.array([1, None, 3]), ())
    assert values.tolist() == [1, 0, 3]
    assert (shape, bad) == ((), {1: "null"})


def test_single_values_fill_a_shape_of_one_element() -> None:
    values, shape, _ = dense(pa.array([1.5, 2.5]), (1, 1))
    assert values.tolist() == [[[1.5]], [[2.5]]]
    assert shape == (1, 1)


@pytest.mark.parametrize("type_", [pa.list_(pa.float32()), pa.list_(pa.float32(), 4)])
def test_a_flat_list_fills_any_fixed_shape(type_: pa.DataType) -> None:
    values, shape, bad = dense(pa.array([[1, 2, 3, 4], None, [5, 6, 7, 8]], type_), (2, 2))
    assert values.tolist() == [[[1, 2], [3, 4]], [[0, 0], [0, 0]], [[5, 6], [7, 8]]]
    assert (shape, bad) == ((2, 2), {1: "null"})


def test_rows_of_another_shape_are_named_with_what_was_found() -> None:
    rows = [[[1, 2], [3, 4]], [[1, 2]], [[1], [2]], [[1, None], [3, 4]], [None, [1, 2]], None]
    values, _, bad = dense(pa.array(rows, pa.list_(pa.list_(pa.int8()))), (2, 2))
    assert bad == {
        1: "shape [2, 2] is expected, found 1 values where 2 belong",
        2: "shape [2, 2] is expected, found 1 values where 2 belong",
        3: "null inside the list",
        4: "null inside the list",
        5: "null",
    }
    assert values[0].tolist() == [[1, 2], [3, 4]]


def test_an_open_size_is_that_of_the_first_row_that_has_one() -> None:
    values, shape, bad = dense(pa.array([None, [1, 2, 3], [4], [5, 6, 7]]), (-1,))
    assert shape == (3,)
    assert values.tolist() == [[0, 0, 0], [1, 2, 3], [0, 0, 0], [5, 6, 7]]
    assert sorted(bad) == [0, 2]
    nested = pa.array([[], [[1, 2]]], pa.list_(pa.list_(pa.int8())))
    assert dense(nested, (-1, -1))[1] == (1, 2)
    assert dense(nested, (1, -1))[1] == (1, 2)
    assert dense(pa.array([None], pa.list_(pa.int8())), (-1,))[1] == (0,)


@pytest.mark.parametrize("first", [[float("nan")], [None], None, []])
@pytest.mark.parametrize("type_", [pa.float16(), pa.float32(), pa.float64()])
def test_an_open_size_is_not_that_of_a_row_with_a_hole(first: list[float | None] | None, type_: pa.DataType) -> None:
    rows = pa.array([[[float("nan")]], [first], [[1, 2], [3]], [[1, 2]], [[3, 4]]], pa.list_(pa.list_(type_)))
    expected = (1, 0) if first == [] else (1, 2)
    assert dense(rows, (-1, -1))[1] == dense(rows, (1, -1))[1] == expected


def test_an_open_size_is_not_that_of_a_row_that_misses_a_fixed_one() -> None:
    assert dense(pa.array([[[1]], [[1, 2], [3, 4]]]), (2, -1))[1] == (2, 2)
    of_four = pa.array([None, [[1] * 4], [[1] * 4] * 2], pa.list_(pa.list_(pa.int8(), 4)))
    assert dense(of_four, (2, -1))[1] == (2, 4)


@pytest.mark.parametrize(
    ("column", "shape", "message"),
    [
        (pa.array([1]), (4,), r"shape \[4\] per row is expected, found single values of int64"),
        (pa.array([1]), (-1,), r"shape \[any\] per row is expected, found single values"),
        (pa.array([[1]]), (-1, 2), r"shape \[any, 2\] per row is expected, found a column of list<item: int64>"),
        (pa.array([[[1]]]), (1,), "found a column of list<item: list<item: int64>>"),
        (pa.array([[1, 2]], pa.list_(pa.int8(), 2)), (3,), r"fixed_size_list<item: int8>\[2\]"),
        (pa.array([[1, 2]], pa.list_(pa.int8(), 2)), (), r"fixed_size_list<item: int8>\[2\]"),
    ],
)
def test_a_column_that_never_fits_is_an_error_as_a_whole(
    column: pa.Array, shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        dense(column, shape)


@pytest.mark.parametrize(
    ("datatype", "type_", "fits"),
    [
        ("FP32", pa.float64(), True),
        ("FP32", pa.int64(), True),
        ("FP32", pa.bool_(), True),
        ("FP32", pa.string(), False),
        ("INT64", pa.uint8(), True),
        ("INT64", pa.bool_(), True),
        ("INT64", pa.float32(), False),
        ("BOOL", pa.bool_(), True),
        ("BOOL", pa.int8(), False),
        ("BYTES", pa.string(), True),
        ("BYTES", pa.binary(), True),
        ("BYTES", pa.int8(), False),
    ],
)
def test_which_columns_feed_which_datatype(datatype: Datatype, type_: pa.DataType, fits: bool) -> None:
    assert takes(datatype, type_) is fits


@pytest.mark.parametrize(
    ("values", "datatype", "bad"),
    [
        (
            np.array([1, 300, -1]),
            "UINT8",
            {1: "the value 300 does not fit UINT8", 2: "the value -1 does not fit UINT8"},
        ),
        (np.array([1.0, 1e300]), "FP32", {1: "the value 1e+300 does not fit FP32"}),
        (np.array([np.inf, 70000.0]), "FP16", {1: "the value 70000.0 does not fit FP16"}),
        (np.array([2, 0]), "BOOL", {}),
        (np.array([2**53 + 1]), "FP64", {}),
    ],
)
def test_a_value_that_does_not_fit_is_a_bad_row(values: Any, datatype: Datatype, bad: dict[int, str]) -> None:
    assert cast(values, datatype)[1] == bad


def test_a_float_becomes_an_integer_only_when_asked() -> None:
    with pytest.raises(InputError, match="INT64 is expected, found float64") as caught:
        cast(np.array([1.9]), "INT64")
    assert "op: cast" in caught.value.hint
    values, bad = cast(np.array([1.9, -1.9, np.nan, 1e30]), "INT64", force=True)
    assert values[:2].tolist() == [1, -1]
    assert sorted(bad) == [2, 3]


def test_what_has_the_datatype_already_is_left_alone() -> None:
    values = np.array([1.0], dtype=np.float32)
    assert cast(values, "FP32")[0] is values


@given(st.integers(0, 4), st.lists(st.integers(1, 3), max_size=3))
def test_tensors_become_columns_and_back(rows: int, shape: list[int]) -> None:
    values = np.arange(rows * int(np.prod(shape)), dtype=np.float32).reshape(rows, *shape)
    type_ = arrow_type("FP32", tuple(shape))
    column = to_arrow(values, type_)
    assert column.type == type_
    assert element_type(type_) == (pa.float32(), len(shape))
    back, _, bad = dense(column, tuple(shape))
    assert np.array_equal(back, values)
    assert not bad


def test_open_sizes_are_lists_and_bytes_are_bytes() -> None:
    assert arrow_type("INT8", (-1,)) == pa.list_(pa.int8())
    assert to_arrow(np.array([[1, 2]], dtype=np.int8), pa.list_(pa.int8())).to_pylist() == [[1, 2]]
    assert to_arrow(np.array([b"a", b"b"], dtype=object), arrow_type("BYTES", ())).to_pylist() == [b"a", b"b"]
    assert to_arrow(["a"], pa.string()).to_pylist() == ["a"]
