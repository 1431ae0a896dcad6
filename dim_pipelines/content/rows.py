"""Judging rows: which columns are kept, whether ids are sound, and which rows no model can take."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from dim_pipelines.content.identifiers import SeenIds
from dim_pipelines.content.manifest import MAX_ID_BYTES
from dim_pipelines.content.readers import PATH_COLUMN, ImageSource
from dim_pipelines.content.shards import canonical_array, canonical_type
from dim_pipelines.content.source import Source, SourceBatch
from dim_pipelines.content.steps import nearest
from dim_pipelines.content.transforms import check_column, prepare
from dim_pipelines.domain.batch import BatchSpec, InputSpec
from dim_pipelines.domain.model import ModelDescription, ModelInput
from dim_pipelines.errors import InputError

ROW_COLUMN: Final = "row"
"""The id column of an input that names none: the row's number, from 0.

Rows are counted as the reader gives them: in CSV that is records, not lines (see `content/delimited`).
"""
_REASON_CHARACTERS: Final = 300


@dataclass(frozen=True, slots=True)
class DeadRow:
    """A row that is set aside: its id, its number in the input from 0, why, its file, and where in it."""

    id: int | str
    number: int
    reason: str
    file: str
    place: str


@dataclass(frozen=True, slots=True)
class Judged:
    """One batch of rows, judged: `rows` were read, `good` holds the id and the kept columns of the good ones."""

    rows: int
    good: pa.Table
    dead: list[DeadRow]


class RowJudge:
    """Judges every row of a source."""

    def __init__(self, source: Source, spec: BatchSpec, models: Sequence[ModelDescription]) -> None:
        """Choose the columns and check that they can feed the models at all.

        Raises:
            InputError: a column is unknown (the nearest is named), or of a type that no model input takes.
        """
        self._source = source
        self._spec = spec
        given, schema = spec.input, source.schema
        self._by_path = given.id_column is None and isinstance(source, ImageSource)
        id_column = PATH_COLUMN if self._by_path else given.id_column
        columns = _columns(given, models, schema.names, given.uri)
        if id_column is None and ROW_COLUMN in columns:
            raise InputError(
                f"{given.uri}: the column {ROW_COLUMN!r} has the name that row numbers get",
                hint="name an id column, or rename this one",
            )
        if id_column is not None:
            _known(id_column, schema.names, f"{given.uri}: id column")
        self._id = id_column
        self._columns = [name for name in columns if name != id_column]
        self._inputs = [list(model.inputs) for model in models]
        self._wanted: dict[str, pa.DataType | None] = {}
        if id_column is not None:
            self._wanted[id_column] = None
        for name in self._columns:
            feeds = [tensor for inputs in self._inputs for tensor in inputs if tensor.source == name]
            self._wanted[name] = _text_type(feeds[0]) if feeds else None
            canonical_type(schema.field(name).type)
        self._seen = SeenIds()

    def judged(self) -> Iterator[Judged]:
        """Read and judge.

        Raises:
            InputError: the source cannot be read; an id is null or stands twice; a row is bad and the spec says
                `fail`; or a column cannot feed a model.
        """
        for batch in self._source.batches(self._wanted):
            yield self._judge(batch)

    def _judge(self, batch: SourceBatch) -> Judged:
        ids = self._ids(batch)
        reasons = dict(batch.bad)
        self._settle(batch)
        for inputs in self._inputs:
            for row, reason in self._errors(inputs, batch).items():
                reasons.setdefault(row, reason)
        if reasons and self._spec.on_row_error.policy == "fail":
            row = min(reasons)
            raise InputError(
                f"{batch.place(row)}: {reasons[row]}",
                hint="mend the row, or set bad rows aside with on_row_error: dead_letter",
            )
        table = pa.Table.from_arrays(
            [ids] + [canonical_array(batch.table.column(name)) for name in self._columns],
            names=[self._id or ROW_COLUMN, *self._columns],
        )
        dead = [
            DeadRow(
                ids[row].as_py(),
                batch.first + row,
                reasons[row][:_REASON_CHARACTERS],
                batch.file(row),
                batch.place(row),
            )
            for row in sorted(reasons)
        ]
        if dead:
            table = table.take(pa.array([row for row in range(len(ids)) if row not in reasons], pa.int64()))
        return Judged(len(ids), table, dead)

    def _settle(self, batch: SourceBatch) -> None:
        """Settle open sizes by the input's first row that is good in all respects, the same for every shard.

        Each row is tried alone until one is found: beside others, a bad row could settle a size before it.
        """
        if not any(-1 in tensor.shape for inputs in self._inputs for tensor in inputs):
            return
        for row in range(batch.table.num_rows):
            if row in batch.bad:
                continue
            try:
                alone = [prepare(inputs, batch.table.slice(row, 1)) for inputs in self._inputs]
            except InputError:
                continue  # what no row could feed is said by `_errors`, for the whole batch
            if any(prepared.errors for prepared in alone):
                continue
            self._inputs = [
                [tensor.model_copy(update={"shape": prepared.shapes[tensor.name]}) for tensor in inputs]
                for inputs, prepared in zip(self._inputs, alone, strict=True)
            ]
            return

    def _errors(self, inputs: list[ModelInput], batch: SourceBatch) -> dict[int, str]:
        try:
            prepared = prepare(inputs, batch.table)
        except InputError as error:
            raise InputError(f"{batch.file(0)}: {error.message}", hint=error.hint) from error
        return {error.row: error.reason for error in prepared.errors}

    def _ids(self, batch: SourceBatch) -> pa.Array:
        if self._id is None:
            return pa.array(range(batch.first, batch.first + batch.table.num_rows), pa.int64())
        ids = canonical_array(batch.table.column(self._id))
        where = f"id column {self._id!r}"
        if pa.types.is_integer(ids.type):
            try:
                ids = ids.cast(pa.int64())
            except pa.ArrowInvalid as error:
                raise InputError(f"{batch.file(0)}, {where}: an id does not fit int64") from error
        elif not pa.types.is_string(ids.type):
            raise InputError(
                f"{batch.file(0)}, {where}: ids are integers or texts, found {ids.type}", hint="choose another column"
            )
        empty = ids.is_null()
        if pa.types.is_string(ids.type):
            empty = pc.or_(empty, pc.equal(pc.fill_null(ids, ""), ""))
        if (row := pc.index(empty, True).as_py()) >= 0:
            raise InputError(
                f"{batch.place(row)}, {where}: null",
                hint="every row needs an id; without id_column rows are numbered",
            )
        if pa.types.is_string(ids.type) and (row := _too_long(ids)) >= 0:
            raise InputError(f"{batch.place(row)}, {where}: the id has more than {MAX_ID_BYTES} bytes")
        again = None if self._by_path else self._seen.add(ids)
        if again is not None:
            raise InputError(
                f"{batch.place(again)}, {where}: {ids[again].as_py()!r} stands twice", hint="an id must name one row"
            )
        return ids


def check_dataset(schema: pa.Schema, given: InputSpec, models: Sequence[ModelDescription], name: str) -> None:
    """Check that a dataset that is there already can feed the models.

    Args:
        schema: of its shards.
        given: what the user said of the input.
        models: whose inputs must fit.
        name: names the dataset in messages.

    Raises:
        InputError: a column is missing or of a type that a model does not take, or the id column is another one.
    """
    _columns(given, models, schema.names, name)
    if given.id_column not in (None, schema.names[0]):
        raise InputError(f"dataset {name}: its id column is {schema.names[0]!r}, not {given.id_column!r}")
    for model in models:
        for tensor in model.inputs:
            try:
                check_column(tensor, schema.field(tensor.source).type)
            except InputError as error:
                raise InputError(
                    f"dataset {name}, column {tensor.source!r}: {error.message}", hint=error.hint
                ) from error


def _columns(given: InputSpec, models: Sequence[ModelDescription], there: Sequence[str], where: str) -> list[str]:
    needed = list(dict.fromkeys(name for model in models for name in model.columns))
    for name in given.columns or ():
        _known(name, there, f"{where}: column")
    for name in needed:
        _known(name, there, f"{where}: the model's input column")
    if given.columns is None:
        return needed
    missing = [name for name in needed if name not in given.columns]
    if missing:
        raise InputError(f"{where}: the model reads column {missing[0]!r}, which 'columns' leaves out")
    return list(dict.fromkeys(given.columns))


def _known(name: str, there: Sequence[str], where: str) -> None:
    if name not in there:
        raise InputError(f"{where} {name!r} is not there", hint=nearest(name, there))


def _text_type(tensor: ModelInput) -> pa.DataType:
    """Give the type as which a column of texts is read for a tensor."""
    if tensor.preprocess and tensor.preprocess[0].op == "decode_image":
        return pa.string()
    if tensor.preprocess or tensor.datatype.startswith("FP"):
        return pa.float64()
    if tensor.datatype == "BYTES":
        return pa.string()
    if tensor.datatype == "BOOL":
        return pa.bool_()
    return pa.uint64() if tensor.datatype == "UINT64" else pa.int64()


def _too_long(ids: pa.Array) -> int:
    row: int = pc.index(pc.greater(pc.binary_length(ids), MAX_ID_BYTES), True).as_py()
    return row
