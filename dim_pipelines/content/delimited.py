"""CSV as a stream of typed columns, with the line of every row.

RFC 4180 with a header line: UTF-8 with or without a byte order mark, LF or CRLF, quoted fields that may hold
line breaks. Empty lines are passed over, except that in a file of one column an empty line that is not at
the very end is a row whose value is empty. Rows are numbered by counting records, from 0: neither the header
nor lines that are passed over count, and a record that spans several lines counts once. Python's own reader
splits the lines, because only it tells on which line a record starts and notices a quote that never ends;
Arrow turns the texts into numbers.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pyarrow as pa

from dim_pipelines.content.source import BATCH_BYTES, BATCH_ROWS, SourceBatch, unreadable
from dim_pipelines.errors import InputError

MAX_FIELD: Final = 64 << 20
"""The longest field, in characters."""
_INTEGER: Final = re.compile(r"-?(0|[1-9][0-9]{0,17})")
"""Text that an int64 gives back unchanged: no leading zeros, so that ids such as 007 stay as they are."""


@dataclass(frozen=True, slots=True)
class _Lines:
    """Rows as texts: their values per wanted column and the line each starts on."""

    first: int
    values: list[list[str]]
    lines: list[int]


class DelimitedSource:
    """The rows of one CSV file.

    Attributes:
        schema: the header's names, all as text: a CSV file has no types until a reader asks for some.
        notes: remarks for the user.
    """

    def __init__(self, path: Path, name: str | None = None) -> None:
        """Read the header.

        Args:
            path: the file.
            name: what the user calls it, where the path is a temporary one.

        Raises:
            InputError: the file is empty, unreadable, not UTF-8, or its header names a column twice.
        """
        self._path = path
        self._name = name or str(path)
        self.notes: tuple[str, ...] = ()
        header, _ = next(self._records(), ([], 0))
        if not header:
            raise InputError(f"{self._name} is empty", hint="the first line of a CSV file names its columns")
        twice = sorted({name for name in header if header.count(name) > 1})
        if twice:
            raise InputError(f"{self._name}, line 1: the column {twice[0]!r} stands twice")
        self._header = header
        self.schema = pa.schema([(name, pa.string()) for name in header])

    def batches(self, wanted: Mapping[str, pa.DataType | None]) -> Iterator[SourceBatch]:
        """Read the wanted columns.

        Args:
            wanted: column → the type to read it as; None: int64, double or text, whichever holds the first rows.

        Raises:
            InputError: a line has another number of fields, the file ends inside a quote, or a value of a column
                without a stated type does not have the type of the first rows.
        """
        types = dict(wanted)
        for lines in self._lines(list(wanted)):
            arrays, bad = [], {}
            for (name, type_), texts in zip(types.items(), lines.values, strict=True):
                if type_ is None:
                    type_ = types[name] = _guessed(texts)
                array, wrong = _typed(texts, type_)
                if wrong and wanted[name] is None:
                    row = min(wrong)
                    raise InputError(
                        f"{self._name}, line {lines.lines[row]}, column {name!r}: {wrong[row]}",
                        hint=f"the first rows of this column are {type_}",
                    )
                bad.update({row: f"column {name!r}: {reason}" for row, reason in wrong.items() if row not in bad})
                arrays.append(array)
            table = pa.Table.from_arrays(arrays, names=list(types))
            yield SourceBatch(lines.first, table, bad, (self._name,), "line", lines.lines)

    def _lines(self, names: list[str]) -> Iterator[_Lines]:
        positions = [self._header.index(name) for name in names]
        width = len(self._header)
        records = self._records()
        next(records)
        first, size = 0, 0
        rows: list[list[str]] = []
        lines: list[int] = []
        for fields, line in records:
            if len(fields) != width:
                raise InputError(
                    f"{self._name}, line {line}: {len(fields)} fields, the header has {width}",
                    hint="a comma inside a value must be quoted",
                )
            rows.append(fields)
            lines.append(line)
            size += sum(map(len, fields))
            if len(rows) == BATCH_ROWS or size > BATCH_BYTES:
                yield _Lines(first, [[row[position] for row in rows] for position in positions], lines)
                first, size, rows, lines = first + len(rows), 0, [], []
        if rows:
            yield _Lines(first, [[row[position] for row in rows] for position in positions], lines)

    def _records(self) -> Iterator[tuple[list[str], int]]:
        """Give each record with the line on which it starts; an empty line is a value where there is one column."""
        csv.field_size_limit(MAX_FIELD)
        line = 1
        width = 0
        given = 0  # the last line of the last record
        try:
            with self._path.open(encoding="utf-8-sig", newline="") as file:
                reader = csv.reader(file, strict=True)
                while True:
                    line = reader.line_num + 1
                    fields = next(reader, None)
                    if fields is None:
                        return
                    if not fields:
                        continue
                    if width == 1:
                        # only now it is known that the empty lines before are not the end of the file
                        yield from (([""], empty) for empty in range(given + 1, line))
                    yield fields, line
                    width, given = width or len(fields), reader.line_num
        except UnicodeDecodeError as error:
            raise InputError(
                f"{self._name}, line {_line_that_is_no_text(self._path)}: not UTF-8",
                hint="convert the file to UTF-8, for example: iconv -f latin1 -t utf-8 FILE > NEW",
            ) from error
        except csv.Error as error:
            reason = "a quote is never closed" if "unexpected end" in str(error) else str(error)
            raise InputError(f"{self._name}, line {line}: {reason}") from error
        except OSError as error:
            raise unreadable(self._path, error) from error


def _guessed(texts: list[str]) -> pa.DataType:
    filled = [text for text in texts if text]
    if filled and all(_INTEGER.fullmatch(text) for text in filled):
        return pa.int64()
    _, wrong = _typed(filled, pa.float64())
    # a number with a leading zero is a code, not a quantity
    codes = any(re.match(r"-?0[0-9]", text) for text in filled)
    return pa.float64() if filled and not wrong and not codes else pa.string()


def _typed(texts: list[str], type_: pa.DataType) -> tuple[pa.Array, dict[int, str]]:
    """Read texts as a type; an empty text is null unless texts are wanted."""
    if pa.types.is_string(type_):
        return pa.array(texts, pa.string()), {}
    array = pa.array(texts, pa.string())
    if "" in texts:
        array = pa.array([text or None for text in texts], pa.string())
    try:
        return array.cast(type_), {}
    except pa.ArrowInvalid:
        wrong = {row: f"{_short(text)} is not {_kind(type_)}" for row, text in enumerate(texts) if _fails(text, type_)}
        kept = [None if row in wrong else text or None for row, text in enumerate(texts)]
        return pa.array(kept, pa.string()).cast(type_), wrong


def _fails(text: str, type_: pa.DataType) -> bool:
    if not text:
        return False
    try:
        pa.scalar(text).cast(type_)
    except pa.ArrowInvalid:
        return True
    return False


def _kind(type_: pa.DataType) -> str:
    if pa.types.is_boolean(type_):
        return "true or false"
    return "an integer" if pa.types.is_integer(type_) else "a number"


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:40] + "…")


def _line_that_is_no_text(path: Path) -> int:
    with path.open("rb") as file:
        for line, raw in enumerate(file, start=1):
            try:
                raw.decode("utf-8")
            except UnicodeDecodeError:
                return line
    return 1
