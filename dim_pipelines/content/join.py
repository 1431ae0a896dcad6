"""The joined table: outputs beside the input rows they were computed from, as a Parquet or CSV file.

Columns: the id, the input's columns without binary ones (images and the like stay in the store, their ids
lead to them), the outputs. Both sides are read as streams and meet shard by shard, so memory holds a few
shards; so are the dead rows and their reasons, which are both in input order. The file appears whole or not at all.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from dim_pipelines.content.files import read_file
from dim_pipelines.content.manifest import dead_ids, read_dataset, read_result
from dim_pipelines.content.steps import nearest
from dim_pipelines.content.store import ContentStore
from dim_pipelines.content.tables import read_rows
from dim_pipelines.domain.batch import BatchSpec
from dim_pipelines.domain.cid import Cid
from dim_pipelines.domain.dataset import Result
from dim_pipelines.errors import ConfigurationError, ContentMismatch, ContentUnavailable, InputError

_DEAD_ROWS: Final = 16_384
"""Dead rows that are in memory at a time."""
_DEAD_COLUMNS: Final = (("row", pa.int64()), ("reason", pa.string()), ("file", pa.string()))
"""What is said of a dead row beside its id, where it is known."""
OUTPUT_SUFFIX: Final = "_output"
"""Put after an output's name where the input has a column of that name."""


class _Writer(Protocol):
    def write_table(self, table: pa.Table) -> None: ...

    def close(self) -> None: ...


def check_writable(path: Path) -> None:
    """Check, before any work, that a file can be made at `path`; its folder is made where it is missing.

    Raises:
        ConfigurationError: it cannot.
    """
    if path.is_dir():
        raise ConfigurationError(f"the output {path} is a folder", hint="name a file, for example out.parquet")
    probe = path.with_name(f".{path.name}.{os.getpid()}.probe")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ConfigurationError(
            f"the output {path} cannot be written: {error.strerror}", hint="name a file in a folder you may write to"
        ) from error


def dead_path(path: Path) -> Path:
    """Say where the table of dead rows goes: beside the joined one."""
    return path.with_name(f"{path.stem}.dead.parquet")


async def join(
    result: Cid,
    dataset: Cid,
    spec: BatchSpec,
    store: ContentStore,
    path: Path,
    progress: Callable[[int], None] | None = None,
    *,
    errors: Cid | None = None,
) -> int:
    """Write the joined table; dead rows go to `dead_path(path)` when there are any.

    Args:
        result: CID of the result's root.
        dataset: CID of the dataset it was computed from.
        spec: says the file's format and which outputs are wanted.
        store: where both are.
        path: the file to write; it is replaced when it is there.
        progress: is told how many rows were written so far.
        errors: the table of bad rows (`Ingested.errors`), whose reasons are added to the dead rows.

    Returns: rows in the joined table.

    Raises:
        InputError: the spec wants an output that there is not; result and dataset do not belong together.
        ConfigurationError: the file cannot be written.
        ContentUnavailable: there is no space for it.
        ContentError: something cannot be read.
    """
    await asyncio.to_thread(check_writable, path)
    inputs, outputs = await read_dataset(store, dataset), await read_result(store, result)
    if inputs.shards != outputs.shards:
        raise InputError(f"result {result} was not computed from dataset {dataset}")
    partial = path.with_name(f"{path.name}.partial")
    writer: _Writer | None = None
    written = 0
    try:
        pairs = zip_rows(read_rows(store, inputs), read_rows(store, outputs))
        async for left, right in pairs:
            table = _joined(left, right, spec.output.columns)
            if writer is None:
                writer = await asyncio.to_thread(_open_writer, partial, spec.output.format, table.schema)
            await asyncio.to_thread(_write, writer, table)
            written += table.num_rows
            if progress is not None:
                progress(written)
        if writer is None:
            raise InputError(f"result {result} has no rows")
        await asyncio.to_thread(writer.close)
        writer = None
        await _write_dead(store, outputs, errors, dead_path(path))
        await asyncio.to_thread(partial.replace, path)
    except OSError as error:
        if error.errno in (28, 122):  # ENOSPC, EDQUOT
            raise ContentUnavailable(f"no space left while writing {path}", hint="free some space") from error
        raise ConfigurationError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        await asyncio.to_thread(_abandon, writer, partial)
    return written


async def zip_rows(
    left: AsyncIterator[tuple[int, pa.RecordBatch]], right: AsyncIterator[tuple[int, pa.RecordBatch]]
) -> AsyncIterator[tuple[pa.RecordBatch, pa.RecordBatch]]:
    """Give shard i of both sides together, for every i."""
    async for _, rows in left:
        _, others = await anext(right)
        yield rows, others


def _joined(left: pa.RecordBatch, right: pa.RecordBatch, wanted: Sequence[str] | None) -> pa.Table:
    """Put outputs beside inputs by id; an input row without an output is dead and left out."""
    ids, out_ids = left.column(0), right.column(0)
    if not ids.equals(out_ids):
        places = pc.index_in(out_ids, value_set=ids)
        order = places.to_numpy(zero_copy_only=False)
        if places.null_count or (len(order) > 1 and not (np.diff(order) > 0).all()):
            raise ContentMismatch("an output shard holds ids that its input shard does not have in this order")
        left = left.take(places)
    outputs = right.schema.names[1:]
    for name in wanted or ():
        if name not in outputs:
            raise InputError(f"output column {name!r} is not there", hint=nearest(name, outputs))
    columns = {left.schema.names[0]: left.column(0)}
    for name, column in zip(left.schema.names[1:], left.columns[1:], strict=True):
        if not pa.types.is_binary(column.type):
            columns[name] = column
    for name in wanted or outputs:
        columns[_free(name, columns)] = right.column(name)
    return pa.table(columns)


def _free(name: str, taken: dict[str, pa.Array]) -> str:
    while name in taken:
        name += OUTPUT_SUFFIX
    return name


def _open_writer(path: Path, format_: str, schema: pa.Schema) -> _Writer:
    if format_ == "parquet":
        writer: _Writer = pq.ParquetWriter(path, schema, compression="zstd")
        return writer
    return _CsvWriter(path, schema)


def _write(writer: _Writer, table: pa.Table) -> None:
    writer.write_table(table)


def _abandon(writer: _Writer | None, partial: Path) -> None:
    """Leave nothing half-written behind."""
    if writer is not None:
        writer.close()
    partial.unlink(missing_ok=True)


class _CsvWriter:
    """CSV has only plain values: lists and structs become JSON, bytes become base64."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        fields = [pa.field(field.name, pa.string() if _needs_text(field.type) else field.type) for field in schema]
        self._schema = pa.schema(fields)
        self._writer = pyarrow.csv.CSVWriter(path, self._schema)

    def write_table(self, table: pa.Table) -> None:
        columns = [
            pa.array([_as_text(value) for value in column.to_pylist()], pa.string())
            if _needs_text(column.type)
            else column
            for column in table.columns
        ]
        self._writer.write_table(pa.Table.from_arrays(columns, schema=self._schema))

    def close(self) -> None:
        self._writer.close()


def _needs_text(type_: pa.DataType) -> bool:
    return bool(pa.types.is_nested(type_) or pa.types.is_binary(type_) or pa.types.is_fixed_size_binary(type_))


def _as_text(value: Any) -> str | None:
    if value is None:
        return None
    return base64.b64encode(value).decode() if isinstance(value, bytes) else json.dumps(value, default=str)


async def _write_dead(store: ContentStore, outputs: Result, errors: Cid | None, path: Path) -> None:
    """Write the dead rows' ids, with row, reason and file where they are known; remove an older table."""
    if not outputs.dead_rows:
        await asyncio.to_thread(path.unlink, missing_ok=True)
        return
    partial, reasons = path.with_name(f"{path.name}.partial"), path.with_name(f"{path.name}.reasons")
    table: _DeadTable | None = None
    try:
        if errors is not None:
            await read_file(store, errors, reasons)
        table = _DeadTable(partial, reasons if errors is not None else None)
        ids: list[int | str] = []
        async for row in dead_ids(store, outputs):
            ids.append(row)
            if len(ids) == _DEAD_ROWS:
                await asyncio.to_thread(table.write, ids)
                ids = []
        if ids:
            await asyncio.to_thread(table.write, ids)
        await asyncio.to_thread(table.close)
        await asyncio.to_thread(partial.replace, path)
    except (pa.ArrowException, KeyError) as error:
        raise InputError(f"the table of bad rows {errors} cannot be read: {_line(error)}") from error
    finally:
        if table is not None:
            table.close()
        partial.unlink(missing_ok=True)
        reasons.unlink(missing_ok=True)


class _DeadTable:
    """The dead-letter file on its way: ids go in, their reasons are read beside them from a file."""

    def __init__(self, path: Path, reasons: Path | None) -> None:
        self._path = path
        self._reasons = iter(()) if reasons is None else _read_reasons(reasons)
        self._next = next(self._reasons, None)
        self._writer: pq.ParquetWriter | None = None
        self._lock = threading.Lock()
        """So that a cancelled batch does not close the file under a write that is still on its way."""

    def write(self, ids: Sequence[int | str]) -> None:
        """Add rows; the table of reasons names some of all ids, in the same order."""
        with self._lock:
            self._write(ids)

    def close(self) -> None:
        with self._lock:
            if self._writer is not None:
                self._writer.close()

    def _write(self, ids: Sequence[int | str]) -> None:
        found = []
        for row in ids:
            known: dict[str, Any] = {}
            if self._next is not None and self._next["id"] == str(row):
                known, self._next = self._next, next(self._reasons, None)
            found.append(known)
        columns = {"id": pa.array(ids)}
        for name, type_ in _DEAD_COLUMNS:
            columns[name] = pa.array([known.get(name) for known in found], type_)
        table = pa.table(columns)
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._path, table.schema)
        self._writer.write_table(table)


def _read_reasons(path: Path) -> Iterator[dict[str, Any]]:
    """Read an Arrow IPC stream row by row; only the batch at hand is in memory."""
    names = ["id", *(name for name, _ in _DEAD_COLUMNS)]
    with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as reader:
        for batch in reader:
            for start in range(0, batch.num_rows, _DEAD_ROWS):
                yield from batch.select(names).slice(start, _DEAD_ROWS).to_pylist()


def _line(error: Exception) -> str:
    return str(error).strip("'\"").splitlines()[0]
