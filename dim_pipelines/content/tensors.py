"""Arrow columns as tensors of the Open Inference Protocol, and back.

A row that cannot become a tensor (null, NaN, another shape, out of range) is named with its reason and holds
zeros; a column of which no row could (another kind of type, another depth of lists) is an error as a whole.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from dim_pipelines.domain.model import Datatype
from dim_pipelines.errors import InputError

Tensor = npt.NDArray[Any]

DTYPES: Final[Mapping[str, np.dtype[Any]]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "FP16": np.dtype(np.float16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
    "BYTES": np.dtype(np.object_),
}
"""Open Inference Protocol datatype → NumPy's."""


def element_type(type_: pa.DataType) -> tuple[pa.DataType, int]:
    """Give what is at the bottom of nested lists, and how many lists there are."""
    depth = 0
    while pa.types.is_list(type_) or pa.types.is_fixed_size_list(type_):
        type_, depth = type_.value_type, depth + 1
    return type_, depth


def takes(datatype: Datatype, type_: pa.DataType) -> bool:
    """Tell whether values of an Arrow type may become elements of `datatype`.

    Numbers widen and narrow (a value that does not fit is a bad row) and integers become floats, but a float
    never becomes an integer, nor a text a number, without a step that says so.
    """
    if datatype == "BYTES":
        return bool(pa.types.is_string(type_) or pa.types.is_binary(type_))
    if datatype == "BOOL":
        return bool(pa.types.is_boolean(type_))
    if datatype.startswith("FP"):
        return bool(pa.types.is_floating(type_) or pa.types.is_integer(type_) or pa.types.is_boolean(type_))
    return bool(pa.types.is_integer(type_) or pa.types.is_boolean(type_))


def dense(array: pa.Array, shape: tuple[int, ...]) -> tuple[Tensor, tuple[int, ...], dict[int, str]]:
    """Turn a column of numbers or (nested) lists of numbers into one array.

    Args:
        array: canonical column of `n` rows (no dictionaries, views or large types).
        shape: of one row; -1 takes the size of the first complete row. A flat list may fill any fixed shape,
            and a single value a shape of one element.

    Returns:
        the array `[n, *shape]` in the column's own dtype; the shape with every -1 settled; and row → reason of
        the rows that are null or of another shape, which hold zeros.

    Raises:
        InputError: the lists are nested to another depth, or all of another size, than the shape.
    """
    bottom, depth = element_type(array.type)
    dims = shape
    if depth != len(shape):
        if -1 in shape or (depth == 0 and math.prod(shape) != 1) or depth > 1:
            raise InputError(f"shape {_text(shape)} per row is expected, found {_found(array.type)}")
        dims = (math.prod(shape),) if depth else ()
    if pa.types.is_fixed_size_list(array.type) and dims[0] not in (-1, array.type.list_size):
        raise InputError(f"shape {_text(shape)} per row is expected, found {_found(array.type)}")
    dims = _settled(array, dims)
    values, bad = _dense(array, dims, bottom)
    reasons = {int(row): _why(array[int(row)].as_py(), dims) for row in np.flatnonzero(bad)}
    row_shape = dims if depth == len(shape) else shape
    return values.reshape((len(array), *row_shape)), row_shape, reasons


def cast(values: Tensor, datatype: Datatype, *, force: bool = False) -> tuple[Tensor, dict[int, str]]:
    """Bring an array `[n, ...]` to a datatype.

    Args:
        values: the array.
        datatype: an Open Inference Protocol datatype other than BYTES.
        force: also cut floats to integers (towards zero).

    Returns:
        the array, and row → reason where a value does not fit.

    Raises:
        InputError: a float would become an integer and `force` is not set.
    """
    target = DTYPES[datatype]
    if values.dtype == target:
        return values, {}
    flat = values.reshape(len(values), -1)
    with np.errstate(over="ignore", invalid="ignore"):
        cut = np.trunc(flat) if target.kind in "iu" and flat.dtype.kind == "f" else flat
        if cut is not flat and not force:
            raise InputError(f"{datatype} is expected, found {values.dtype}", hint="add a step {op: cast}")
        made = cut.astype(target)
        if target.kind in "iu":
            wrong = ~((cut >= np.iinfo(target).min) & (cut <= np.iinfo(target).max))
        elif target.kind == "f":
            wrong = np.isinf(made) & ~np.isinf(flat)
        else:
            wrong = np.zeros(flat.shape, dtype=bool)
    reasons = {}
    for row in np.flatnonzero(wrong.any(axis=1)):
        value = flat[row][wrong[row]][0]
        reasons[int(row)] = f"the value {value} does not fit {datatype}"
    return made.reshape(values.shape), reasons


def to_arrow(values: Tensor | list[Any], type_: pa.DataType) -> pa.Array:
    """Turn an array `[n, ...]` into a column of (nested fixed-size lists of) `type_`; lists pass through."""
    if isinstance(values, list) or values.dtype == np.object_:
        return pa.array(list(values), type_)
    sizes: list[int] = []
    bottom = type_
    while pa.types.is_fixed_size_list(bottom) or pa.types.is_list(bottom):
        sizes.append(values.shape[len(sizes) + 1])
        bottom = bottom.value_type
    array = pa.array(np.ascontiguousarray(values).reshape(-1), bottom)
    for size in reversed(sizes):
        array = pa.FixedSizeListArray.from_arrays(array, size)
    return array if array.type == type_ else array.cast(type_)


def arrow_type(datatype: Datatype, shape: tuple[int, ...]) -> pa.DataType:
    """Give the Arrow type of a column of tensors: nested fixed-size lists, lists where a size is open."""
    made = pa.binary() if datatype == "BYTES" else pa.from_numpy_dtype(DTYPES[datatype])
    for size in reversed(shape):
        made = pa.list_(pa.field("item", made), size) if size >= 0 else pa.list_(pa.field("item", made))
    return made


def _dense(array: pa.Array, dims: tuple[int, ...], bottom: pa.DataType) -> tuple[Tensor, npt.NDArray[np.bool_]]:
    """Give `[n, *dims]` and the mask of bad rows; `dims` has one entry per level of lists."""
    whole = _whole(array, dims)
    if whole is not None:
        return whole, np.zeros(len(array), dtype=np.bool_)
    bad = array.is_null().to_numpy(zero_copy_only=False)
    if not dims:
        if array.null_count:
            array = pc.fill_null(array, pa.scalar(0).cast(array.type))
        values: Tensor = array.to_numpy(zero_copy_only=False)
        return values, bad
    if pa.types.is_fixed_size_list(array.type):
        lengths = np.full(len(array), array.type.list_size)
    else:
        lengths = pc.list_value_length(array).fill_null(-1).to_numpy(zero_copy_only=False)
    bad = bad | (lengths != dims[0])
    good = np.flatnonzero(~bad)
    children = pc.take(array, pa.array(good)).flatten()
    inner, inner_bad = _dense(children, dims[1:], bottom)
    values = np.zeros((len(array), *dims), dtype=inner.dtype)
    if len(good):
        values[good] = inner.reshape((len(good), *dims))
        bad[good] |= inner_bad.reshape(len(good), -1).any(axis=1)
    return values, bad


def _whole(array: pa.Array, dims: tuple[int, ...]) -> Tensor | None:
    """Give `[n, *dims]` as a view where no value is missing and every list is of fixed size; None elsewhere."""
    level = array
    for size in dims:
        if level.null_count or not pa.types.is_fixed_size_list(level.type) or level.type.list_size != size:
            return None
        level = level.values[level.offset * size : (level.offset + len(level)) * size]  # `flatten` is a slow kernel
    if level.null_count:
        return None
    values: Tensor = level.to_numpy(zero_copy_only=False)
    return values.reshape((len(array), *dims))


def _settled(array: pa.Array, dims: tuple[int, ...]) -> tuple[int, ...]:
    """Replace each -1 by the size in the first complete row (0 where no row is complete: then all are bad)."""
    if -1 not in dims:
        return dims
    for row in range(len(array)):
        found = _complete(array.slice(row, 1), dims)
        if found is not None:
            return found
    return tuple(max(size, 0) for size in dims)


def _complete(row: pa.Array, dims: tuple[int, ...]) -> tuple[int, ...] | None:
    """Give the shape of one row; None where it is ragged, misses a fixed size, or holds a null or NaN."""
    found = []
    for size in dims:
        lengths = pc.unique(pc.list_value_length(row)).to_pylist()
        if row.null_count or len(lengths) != 1 or size not in (-1, lengths[0]):
            return None
        found.append(lengths[0])
        row = row.flatten()
    if row.null_count:
        return None
    values = row.to_numpy(zero_copy_only=False)
    return None if values.dtype.kind == "f" and np.isnan(values).any() else tuple(found)


def _why(value: object, dims: tuple[int, ...]) -> str:
    """Say what is wrong with one row that is null or of another shape."""
    if value is None:
        return "null"
    level, found = [value], []
    for size in dims:
        sizes = {len(item) for item in level if isinstance(item, list)}
        if sizes and sizes != {size}:
            found.append(min(sizes - {size}))
            return f"shape {_text(dims)} is expected, found {found[-1]} values where {size} belong"
        level = [inner for item in level if isinstance(item, list) for inner in item]
    return "null inside the list"


def _text(shape: tuple[int, ...]) -> str:
    return f"[{', '.join('any' if size < 0 else str(size) for size in shape)}]"


def _found(type_: pa.DataType) -> str:
    _, depth = element_type(type_)
    return f"a column of {type_}" if depth else f"single values of {type_}"
