"""A whole shard through a model: decode, preprocess, run on a fixed grid, postprocess, encode.

The micro-batch grid depends on the content alone: rows in order, `batch_rows` at a time. The last
micro-batch is filled up with copies of a good row, a bad row is replaced by one, and what the model gives
for such copies is dropped; so a row's output never depends on who computes it or on what failed beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dim_pipelines.content.shards import decode_shard, encode_shard
from dim_pipelines.content.tensors import DTYPES
from dim_pipelines.content.transforms import finish, output_batch, prepare
from dim_pipelines.domain.events import RowError
from dim_pipelines.domain.model import ModelDescription
from dim_pipelines.errors import EngineFailed, InputError
from dim_pipelines.node.engines.engine import LoadedModel
from dim_pipelines.node.frames import MAX_REASON, MAX_ROW_ERRORS
from dim_pipelines.scheduling.sharding import grid

Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class ShardOutput:
    """What became of a shard.

    Attributes:
        data: the output shard: the id column, then the output columns, good rows only, in order.
        rows: how many rows it holds.
        errors: the first `MAX_ROW_ERRORS` rows that failed, by position in the input shard; where there are more,
            the last reason says how many.
    """

    data: bytes
    rows: int
    errors: tuple[RowError, ...]


@dataclass(slots=True)
class _Collected:
    """Output rows, a record batch per micro-batch, and the rows that failed."""

    pieces: list[pa.RecordBatch] = field(default_factory=list)
    errors: list[RowError] = field(default_factory=list)


def run_shard(
    model: LoadedModel, description: ModelDescription, data: bytes, batch_rows: int, parameters: Mapping[str, Any]
) -> ShardOutput:
    """Compute one shard.

    Args:
        model: the loaded model.
        description: its package's description.
        data: the input shard's bytes; the first column is the id.
        batch_rows: rows of every micro-batch, at most the description's `max_batch_rows`.
        parameters: given to the model with every micro-batch.

    Raises:
        InputError: the bytes are no shard, or the shard lacks a column of the model.
        EngineFailed: the model failed on every row.
    """
    if not 1 <= batch_rows <= description.max_batch_rows:
        raise InputError(f"batch_rows is {batch_rows}, the model takes 1 to {description.max_batch_rows}")
    batch = decode_shard(data)
    missing = [name for name in description.columns if name not in batch.schema.names]
    if missing:
        raise InputError(f"the shard lacks the column {missing[0]!r}, it has {', '.join(batch.schema.names)}")
    collected = _Collected()
    for start in range(0, batch.num_rows, batch_rows):
        piece = batch.slice(start, batch_rows)
        _micro_batch(model, description, piece, start, batch_rows, parameters, collected)
    if not collected.pieces:
        id_name = batch.schema.names[0]
        collected.pieces.append(
            output_batch(description, batch.column(0).slice(0, 0), id_name, finish(description, _no_rows(description)))
        )
    pieces = collected.pieces
    table = pieces[0] if len(pieces) == 1 else pa.Table.from_batches(pieces)
    return ShardOutput(encode_shard(table), table.num_rows, _first(collected.errors))


def _micro_batch(
    model: LoadedModel,
    description: ModelDescription,
    piece: pa.RecordBatch,
    start: int,
    batch_rows: int,
    parameters: Mapping[str, Any],
    collected: _Collected,
) -> None:
    """Run the rows of one place of the grid; one piece is prepared at a time, to bound the memory."""
    prepared = prepare(description.inputs, piece)
    tensors = prepared.tensors
    bad = {error.row: error.reason for error in prepared.errors}
    place = next(grid(piece.num_rows, batch_rows, bad), None)
    if place:
        try:
            outputs = _run(model, tensors, place.take, parameters)
        except EngineFailed as error:
            bad |= _failing_rows(model, tensors, place.rows, batch_rows, parameters)
            place = next(grid(piece.num_rows, batch_rows, bad), None)
            if place is None:
                raise error
            outputs = _run(model, tensors, place.take, parameters)
        if len(place.keep) < batch_rows:
            kept = np.asarray(place.keep)
            outputs = {name: value[kept] for name, value in outputs.items()}
        ids = piece.column(0)
        if len(place.rows) < piece.num_rows:
            ids = ids.take(pa.array(place.rows, pa.int64()))
        collected.pieces.append(output_batch(description, ids, piece.schema.names[0], finish(description, outputs)))
    collected.errors += [RowError(start + row, reason[:MAX_REASON]) for row, reason in sorted(bad.items())]


def _first(errors: list[RowError]) -> tuple[RowError, ...]:
    if len(errors) <= MAX_ROW_ERRORS:
        return tuple(errors)
    last = errors[MAX_ROW_ERRORS - 1]
    more = f" (and {len(errors) - MAX_ROW_ERRORS} more rows failed)"
    return (*errors[: MAX_ROW_ERRORS - 1], RowError(last.row, last.reason[: MAX_REASON - len(more)] + more))


def _run(model: LoadedModel, tensors: Mapping[str, Any], take: Sequence[int], parameters: Mapping[str, Any]) -> Arrays:
    size = len(take)
    in_place = take == tuple(range(size))
    inputs = {
        name: value if in_place and len(value) == size else value[np.asarray(take)] for name, value in tensors.items()
    }
    outputs = model.run(inputs, parameters)
    for name, value in outputs.items():
        if value.ndim < 1 or value.shape[0] != size:
            raise EngineFailed(f"the output {name!r} has shape {list(value.shape)}, expected {size} rows")
    return outputs


def _failing_rows(
    model: LoadedModel, tensors: Mapping[str, Any], good: Sequence[int], batch_rows: int, parameters: Mapping[str, Any]
) -> dict[int, str]:
    """Find the rows that the model fails on even alone (the micro-batch is then filled with that row)."""
    failing: dict[int, str] = {}
    for row in good:
        try:
            _run(model, tensors, (row,) * batch_rows, parameters)
        except EngineFailed as error:
            failing[row] = error.message
    return failing


def _no_rows(description: ModelDescription) -> Arrays:
    return {
        output.name: np.zeros((0, *(max(0, size) for size in output.shape)), DTYPES[output.datatype])
        for output in description.outputs
    }
