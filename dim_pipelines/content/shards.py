"""Shards: rows as Arrow IPC bytes that depend on the values alone.

Plain pyarrow gives equal rows different bytes (slices, chunks, dictionaries, garbage under nulls, trailing
bits, NaN payloads), and the bytes of a slice carry its neighbours. Here every column is rebuilt first, so
equal values are equal bytes and hold nothing else. Order of columns is the caller's; the id stands first.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from functools import lru_cache
from itertools import islice
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dim_pipelines.domain.dataset import MAX_SHARD_BYTES, Column
from dim_pipelines.errors import InputError

_OPTIONS: Final = pa.ipc.IpcWriteOptions(
    metadata_version=pa.ipc.MetadataVersion.V5, compression=None, use_threads=False, emit_dictionary_deltas=False
)
_NAN: Final[Mapping[Any, np.generic]] = {
    pa.float16(): np.uint16(0x7E00).view(np.float16),
    pa.float32(): np.uint32(0x7FC00000).view(np.float32),
    pa.float64(): np.uint64(0x7FF8000000000000).view(np.float64),
}
"""The one NaN of each width (quiet, positive, no payload; IEEE 754-2019, 6.2.1)."""
_NUMBERS: Final = frozenset(
    {pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64(), *_NAN}
)


@lru_cache(maxsize=1024)
def canonical_type(type_: pa.DataType) -> pa.DataType:
    """Give the one type that stands for equal values: no dictionaries, views, large offsets or extension names.

    Raises:
        InputError: the type has no canonical form here (maps, unions, run-end encodings, lists of size 0).
    """
    if isinstance(type_, pa.BaseExtensionType):
        return canonical_type(type_.storage_type)
    if pa.types.is_dictionary(type_):
        return canonical_type(type_.value_type)
    if pa.types.is_large_string(type_) or pa.types.is_string_view(type_):
        return pa.string()
    if pa.types.is_large_binary(type_) or pa.types.is_binary_view(type_):
        return pa.binary()
    if pa.types.is_fixed_size_list(type_):
        if type_.list_size < 1:
            raise InputError("lists of no values cannot go into a shard")  # pyarrow itself divides by zero on them
        return pa.list_(pa.field("item", canonical_type(type_.value_type)), type_.list_size)
    if (
        pa.types.is_list(type_)
        or pa.types.is_large_list(type_)
        or pa.types.is_list_view(type_)
        or pa.types.is_large_list_view(type_)
    ):
        return pa.list_(pa.field("item", canonical_type(type_.value_type)))
    if pa.types.is_struct(type_):
        return pa.struct([pa.field(field.name, canonical_type(field.type)) for field in type_])
    if pa.types.is_nested(type_) or pa.types.is_run_end_encoded(type_):
        raise InputError(f"a column of type {type_} cannot go into a shard", hint="use plain, list or struct columns")
    return type_


def canonical_array(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Rebuild a column so that its buffers depend on its values alone; the type becomes `canonical_type`."""
    if isinstance(column, pa.ChunkedArray):
        chunks = column.chunks
        column = chunks[0] if len(chunks) == 1 else pa.concat_arrays(chunks) if chunks else pa.array([], column.type)
    target = canonical_type(column.type)
    if column.type == target and (copied := _copied(column, target)) is not None:
        return copied
    return _rebuilt(_plain(column, target), target)


def encode_shard(table: pa.Table | pa.RecordBatch) -> bytes:
    """Give the shard's bytes: one record batch in an Arrow IPC stream (V5, no compression, no metadata).

    Every field is nullable, so that the flag says nothing about where the rows came from.

    Raises:
        InputError: a column's type cannot go into a shard, or two columns have one name.
    """
    names = list(table.schema.names)
    if len(set(names)) != len(names):
        raise InputError(f"two columns have one name: {', '.join(names)}")
    arrays = [canonical_array(table.column(index)) for index in range(len(names))]
    schema = pa.schema([pa.field(name, array.type) for name, array in zip(names, arrays, strict=True)])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema, options=_OPTIONS) as writer:
        writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=schema))
    data: bytes = sink.getvalue().to_pybytes()
    return data


def decode_shard(data: bytes) -> pa.RecordBatch:
    """Read a shard; every offset and length in it is checked, so that hostile bytes cannot reach outside.

    What it returns are views of `data`: compressed buffers are refused before any is expanded, so reading takes
    no memory that the shard's own bytes do not have.

    Raises:
        InputError: the bytes are not one shard.
    """
    if len(data) > MAX_SHARD_BYTES:
        raise InputError(f"a shard has {len(data)} bytes, the limit is {MAX_SHARD_BYTES}")
    try:
        for message in islice(pa.ipc.MessageReader.open_stream(pa.py_buffer(data)), 1, 3):
            if message.type == "record batch" and _may_be_compressed(message.metadata.to_pybytes()):
                raise InputError("buffers that are compressed, or metadata that may say so, are in no shard")
        with pa.ipc.open_stream(pa.py_buffer(data)) as reader:
            names = reader.schema.names  # raises where a name is not UTF-8
            if len(set(names)) != len(names):
                raise InputError(f"two columns of a shard have one name: {', '.join(names)}")
            odd = [field for field in reader.schema if canonical_type(field.type) != field.type]
            if odd:
                raise InputError(f"column {odd[0].name!r} of a shard has type {odd[0].type}, which no shard has")
            batches = list(islice(reader, 2))
        if len(batches) != 1:
            raise InputError(f"a shard holds one record batch, found {len(batches)}")
        batches[0].validate(full=True)
    except (pa.ArrowException, OSError, ValueError, struct.error) as error:
        raise InputError(f"not a shard: {str(error).splitlines()[0]}") from error
    return batches[0]


def _may_be_compressed(message: bytes) -> bool:
    """Tell whether a record batch says that its buffers are compressed, which pyarrow does not show.

    Arrow 0.17 said it in the message's custom metadata, and readers still follow that: any such metadata counts.

    A flatbuffer table starts with the distance back to its vtable, which lists where each field lies in the
    table, or 0. Sources: https://flatbuffers.dev/internals and Arrow's Message.fbs (header is field 2 of Message,
    custom_metadata 4; compression is field 3 of RecordBatch) and Schema.fbs.

    Raises:
        struct.error: the bytes end too early.
    """

    def number(kind: str, at: int) -> int:
        found: int = struct.unpack_from(kind, message, at)[0]
        return found

    def field(table: int, index: int) -> int:
        vtable = table - number("<i", table)
        at = 4 + 2 * index
        return number("<H", vtable + at) if at < number("<H", vtable) else 0

    root = number("<I", 0)
    header = root + field(root, 2)
    return field(root, 4) != 0 or field(header + number("<I", header), 3) != 0


def columns_of(schema: pa.Schema) -> tuple[Column, ...]:
    """Describe a schema as the columns of a `Dataset` or `Result`, in canonical types."""
    return tuple(Column(name=field.name, type=str(canonical_type(field.type))) for field in schema)


def _plain(array: pa.Array, target: pa.DataType) -> pa.Array:
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if isinstance(array, pa.ExtensionArray) or pa.types.is_dictionary(array.type):
        return _plain(array, target)
    if pa.types.is_nested(array.type):
        return _plain_nested(array, target)
    try:
        return array if array.type == target else array.cast(target)
    except pa.ArrowInvalid as error:
        raise InputError(f"a column is too large for one shard: {error}", hint="set a smaller shard_rows") from error


def _plain_nested(array: pa.Array, target: pa.DataType) -> pa.Array:
    """Bring the children to their plain types, keeping the parent's structure."""
    if pa.types.is_struct(target):
        children = [_plain(array.field(i), field.type) for i, field in enumerate(target)]
        mask = array.is_null() if array.null_count else None
        return pa.StructArray.from_arrays(children, fields=list(target), mask=mask)
    if pa.types.is_fixed_size_list(target):
        size = target.list_size
        child = _plain(array.values[array.offset * size : (array.offset + len(array)) * size], target.value_type)
        mask = array.is_null() if array.null_count else None
        return pa.FixedSizeListArray.from_arrays(child, type=target, mask=mask)
    # `flatten` gives the values of all lists but null ones, in order, whatever offsets and views say
    lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    if offsets[-1] > np.iinfo(np.int32).max:
        raise InputError("a column is too large for one shard", hint="set a smaller shard_rows")
    child = _plain(array.flatten(), target.value_type)
    mask = array.is_null() if array.null_count else None
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), child, type=target, mask=mask)


def _rebuilt(array: pa.Array, target: pa.DataType) -> pa.Array:
    """Give fresh buffers that hold these rows and nothing else."""
    array = pc.take(array, _every(len(array)))
    mask = array.is_null() if array.null_count else None
    if pa.types.is_struct(target):
        children = [_rebuilt(_under(array.field(i), mask, 1), field.type) for i, field in enumerate(target)]
        return pa.StructArray.from_arrays(children, fields=list(target), mask=mask)
    if pa.types.is_fixed_size_list(target):
        size = target.list_size
        child = array.values[array.offset * size : (array.offset + len(array)) * size]
        return pa.FixedSizeListArray.from_arrays(
            _rebuilt(_under(child, mask, size), target.value_type), type=target, mask=mask
        )
    if pa.types.is_list(target):
        offsets = array.offsets
        child = _rebuilt(array.values[: offsets[-1].as_py() if len(offsets) else 0], target.value_type)
        return pa.ListArray.from_arrays(offsets, child, type=target, mask=mask)
    if target in _NAN:
        return _one_nan(array, target)
    return array


def _copied(array: pa.Array, target: pa.DataType) -> pa.Array | None:
    """Rebuild numbers, or lists of fixed size of them, of which none is null: the common case, ten times faster."""
    if array.null_count:
        return None
    if target not in _NUMBERS:
        if not isinstance(array, pa.FixedSizeListArray):
            return None
        size = target.list_size
        child = _copied(array.values[array.offset * size : (array.offset + len(array)) * size], target.value_type)
        return None if child is None else pa.FixedSizeListArray.from_arrays(child, type=target)
    values = array.to_numpy(zero_copy_only=False)
    if values.dtype.kind == "f" and (nans := np.isnan(values)).any():
        values = np.where(nans, _NAN[target], values)
    return pa.Array.from_buffers(target, len(values), [None, pa.py_buffer(values.tobytes())], 0)


@lru_cache(maxsize=8)
def _every(rows: int) -> pa.Array:
    return pa.array(np.arange(rows, dtype=np.int64))


def _under(child: pa.Array, mask: pa.Array | None, size: int) -> pa.Array:
    """Make the values below null parents null: what lies there is garbage."""
    if mask is None:
        return child
    hidden = np.repeat(mask.to_numpy(zero_copy_only=False), size)
    return pc.if_else(pa.array(~hidden), child, pa.scalar(None, child.type))


def _one_nan(array: pa.Array, target: pa.DataType) -> pa.Array:
    validity, data = array.buffers()
    if data is None or not len(array):
        return array
    dtype = _NAN[target].dtype
    values = np.frombuffer(data, dtype, count=len(array), offset=array.offset * dtype.itemsize)
    nans = np.isnan(values)
    if not nans.any():
        return array
    # rebuilt from the fixed bit pattern, because a platform's own NaN may carry a sign or a payload
    fixed = np.where(nans, _NAN[target], values)
    if array.null_count:
        return pa.Array.from_buffers(target, len(array), [validity, pa.py_buffer(fixed)], array.null_count)
    return pa.Array.from_buffers(target, len(array), [None, pa.py_buffer(fixed)], 0)
