"""Finding out what an input is, and reading Parquet files and images."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from dim_pipelines.content.delimited import DelimitedSource
from dim_pipelines.content.images import SUFFIXES
from dim_pipelines.content.source import BATCH_BYTES, BATCH_ROWS, Source, SourceBatch, unreadable
from dim_pipelines.domain.batch import InputFormat
from dim_pipelines.errors import InputError

PATH_COLUMN: Final = "path"
"""The images reader's column of file names, relative to the folder, with forward slashes."""
IMAGE_COLUMN: Final = "image"
"""The images reader's column of file contents."""
MAX_IMAGE_BYTES: Final = 32 << 20
"""The largest image file, in bytes; a larger one is a bad row."""

_MAGIC: Final = ((b"PAR1", "parquet"), (b"\x89PNG", "images"), (b"\xff\xd8\xff", "images"), (b"GIF8", "images"),
                 (b"BM", "images"), (b"II*\0", "images"), (b"MM\0*", "images"))  # fmt: skip


class ParquetSource:
    """The rows of one Parquet file.

    Attributes:
        schema: the file's columns.
        notes: remarks for the user.
    """

    def __init__(self, path: Path, name: str | None = None) -> None:
        """Read the footer.

        Args:
            path: the file.
            name: what the user calls it, where the path is a temporary one.

        Raises:
            InputError: the file is empty, unreadable or no Parquet.
        """
        self._path = path
        self._name = name or str(path)
        self.notes: tuple[str, ...] = ()
        with self._open() as file:
            self.schema: pa.Schema = file.schema_arrow

    def batches(self, wanted: Mapping[str, pa.DataType | None]) -> Iterator[SourceBatch]:
        """Read the wanted columns, each in the type it has in the file.

        Raises:
            InputError: the file is broken.
        """
        first, path = 0, self._name
        with self._open() as file:
            try:
                for batch in file.iter_batches(BATCH_ROWS, columns=list(wanted), use_threads=False):
                    table = pa.Table.from_batches([batch]).select(list(wanted))
                    table.validate(full=True)  # a text that is not UTF-8 must not reach a shard
                    numbers = range(first, first + batch.num_rows)
                    yield SourceBatch(first, table, {}, (path,), "row", numbers)
                    first += batch.num_rows
            except (pa.ArrowException, OSError) as error:
                raise InputError(f"{path} is broken after row {first}: {_line(error)}") from error

    def _open(self) -> pq.ParquetFile:
        try:
            if self._path.stat().st_size == 0:
                raise InputError(f"{self._name} is empty")
            return pq.ParquetFile(self._path, pre_buffer=False)
        except pa.ArrowException as error:
            raise InputError(f"{self._name} is not a Parquet file: {_line(error)}") from error
        except OSError as error:
            raise unreadable(self._path, error) from error


class ImageSource:
    """A folder of images, or one image: a row per file, sorted by relative path.

    Attributes:
        schema: `path` (text) and `image` (the file's bytes).
        notes: how many files were passed over because their names are not those of images.
    """

    schema: Final = pa.schema([(PATH_COLUMN, pa.string()), (IMAGE_COLUMN, pa.binary())])

    def __init__(self, path: Path, name: str | None = None) -> None:
        """List the files.

        Args:
            path: the folder or the file.
            name: what the user calls it, where the path is a temporary one.

        Raises:
            InputError: nothing is there, or no file has the name of an image.
        """
        self._name = name or str(path)
        self.notes: tuple[str, ...] = ()
        if not path.is_dir():
            self._folder, self._files = path.parent, [path.name]
            self._names = [name or path.name]
            self._places = [self._name]
            return
        files, passed = _listed(path)
        if not files:
            known = ", ".join(sorted(SUFFIXES))
            found = f" (it has {_counted(passed)})" if passed else ""
            raise InputError(f"the folder {self._name} holds no images{found}", hint=f"images end in {known}")
        if passed:
            self.notes = (f"passed over, not images by their names: {_counted(passed)}",)
        self._folder, self._files, self._names = path, files, files
        self._places = [f"{self._name.rstrip('/')}/{file}" for file in files]

    def batches(self, wanted: Mapping[str, pa.DataType | None]) -> Iterator[SourceBatch]:
        """Read the wanted columns; a file that is too large or cannot be read is a bad row.

        A file that is gone since it was listed is an error: the input changed under the reader.

        Raises:
            InputError: a file is gone or its name is no text.
        """
        first, size = 0, 0
        names: list[str] = []
        contents: list[bytes | None] = []
        bad: dict[int, str] = {}
        for file, name in zip(self._files, self._names, strict=True):
            content = self._read(file, len(names), bad) if IMAGE_COLUMN in wanted else None
            names.append(name)
            contents.append(content)
            size += len(content or b"")
            if len(names) == BATCH_ROWS or size > BATCH_BYTES:
                yield self._batch(first, names, contents, bad, wanted)
                first, size = first + len(names), 0
                names, contents, bad = [], [], {}
        if names:
            yield self._batch(first, names, contents, bad, wanted)

    def _read(self, file: str, row: int, bad: dict[int, str]) -> bytes | None:
        path = self._folder / file
        try:
            length = path.stat().st_size
            if length > MAX_IMAGE_BYTES:
                bad[row] = f"the file has {length} bytes, the limit is {MAX_IMAGE_BYTES}"
            elif not length:
                bad[row] = "the file is empty"
            else:
                return path.read_bytes()
        except FileNotFoundError as error:
            raise unreadable(path, error) from error
        except OSError as error:
            bad[row] = f"the file cannot be read: {error.strerror}"
        return None

    def _batch(
        self,
        first: int,
        names: list[str],
        contents: list[bytes | None],
        bad: dict[int, str],
        wanted: Mapping[str, pa.DataType | None],
    ) -> SourceBatch:
        columns = {PATH_COLUMN: pa.array(names, pa.string()), IMAGE_COLUMN: pa.array(contents, pa.binary())}
        table = pa.table({name: columns[name] for name in wanted})
        return SourceBatch(first, table, bad, self._places[first : first + len(names)])


def open_path(path: Path, format_: InputFormat | None, name: str | None = None) -> Source:
    """Open a file or folder.

    Args:
        path: where it lies.
        format_: how to read it; found from its name, else from its first bytes, when left out.
        name: what the user calls it, where the path is a temporary one.

    Raises:
        InputError: it is missing, empty or unreadable, or nothing tells how to read it.
    """
    if not path.exists():
        raise InputError(f"there is no file or folder {path}")
    format_ = format_ or _format(path)
    if path.is_dir() and format_ != "images":
        raise InputError(f"{path} is a folder, {format_} is read from a file", hint="name one file of the folder")
    if format_ == "parquet":
        return ParquetSource(path, name)
    if format_ == "csv":
        return DelimitedSource(path, name)
    if format_ == "images":
        return ImageSource(path, name)
    raise InputError(f"{path} is not a dataset", hint="format 'dataset' goes with the CID of a dataset")


def _format(path: Path) -> InputFormat:
    if path.is_dir():
        return "images"
    suffix = path.suffix.lower()
    if suffix in (".parquet", ".pq"):
        return "parquet"
    if suffix == ".csv":
        return "csv"
    if suffix in SUFFIXES:
        return "images"
    try:
        with path.open("rb") as file:
            start = file.read(4096)
    except OSError as error:
        raise unreadable(path, error) from error
    if not start:
        raise InputError(f"{path} is empty")
    for magic, format_ in _MAGIC:
        if start.startswith(magic):
            return "parquet" if format_ == "parquet" else "images"
    if start[8:12] == b"WEBP":
        return "images"
    if b"," in start and b"\0" not in start:
        return "csv"
    raise InputError(f"cannot tell how to read {path}", hint="say it: format: parquet, csv or images")


def _listed(folder: Path) -> tuple[list[str], Counter[str]]:
    """List the images below a folder, and count the other files by suffix; hidden ones are not looked at."""
    files: list[str] = []
    passed: Counter[str] = Counter()

    def failed(error: OSError) -> None:
        raise unreadable(Path(error.filename or folder), error) from error

    for parent, folders, names in os.walk(folder, onerror=failed):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            suffix = Path(name).suffix.lower()
            if name.startswith("."):
                continue
            if suffix not in SUFFIXES:
                passed[suffix or "no suffix"] += 1
                continue
            relative = (Path(parent) / name).relative_to(folder).as_posix()
            if not relative.isprintable() and any("\udc80" <= char <= "\udcff" for char in relative):
                raise InputError(f"the name of a file is not UTF-8: {relative!r}", hint="rename the file")
            files.append(relative)
    return sorted(files), passed


def _counted(passed: Counter[str]) -> str:
    return ", ".join(f"{count} {suffix}" for suffix, count in sorted(passed.items()))


def _line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
