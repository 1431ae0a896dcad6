"""What a reader offers, whatever the rows lie in: their schema, and batches with a place for every row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Protocol

import pyarrow as pa

from dim_pipelines.errors import InputError

BATCH_ROWS: Final = 4096
"""The most rows that a reader gives at once."""
BATCH_BYTES: Final = 16 << 20
"""About how many bytes a reader gives at once."""


@dataclass(frozen=True, slots=True)
class SourceBatch:
    """Rows in input order.

    Attributes:
        first: number of the first row; the first row of the input is 0.
        table: the wanted columns, in the order in which they were wanted.
        bad: position in this batch → why the row could not be read; such a row holds nulls.
        files: the one file all rows are in, or the file of each row.
        word: what `numbers` count in the file: `line` or `row`; nothing where a file is one row.
        numbers: position in this batch → the row's number in the file.
    """

    first: int
    table: pa.Table
    bad: dict[int, str]
    files: Sequence[str]
    word: Literal["line", "row", ""] = ""
    numbers: Sequence[int] = ()

    def file(self, row: int) -> str:
        """Name the file of a row."""
        return self.files[row] if len(self.files) > 1 else self.files[0]

    def place(self, row: int) -> str:
        """Say where a row is, for a person."""
        return f"{self.file(row)}, {self.word} {self.numbers[row]}" if self.word else self.file(row)


class Source(Protocol):
    """Rows that can be read from the start, as often as wanted, in bounded memory."""

    @property
    def schema(self) -> pa.Schema:
        """The columns there are."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks for the user, such as files that were passed over."""
        ...

    def batches(self, wanted: Mapping[str, pa.DataType | None]) -> Iterator[SourceBatch]:
        """Read the wanted columns; a type is what a format without types of its own reads the column as.

        Raises:
            InputError: the input cannot be read; the message names the file and the place.
        """
        ...


def unreadable(path: Path, error: OSError) -> InputError:
    """Say that a file cannot be read."""
    if isinstance(error, FileNotFoundError):
        return InputError(f"there is no file or folder {path}")
    return InputError(f"cannot read {path}: {error.strerror or error}")
