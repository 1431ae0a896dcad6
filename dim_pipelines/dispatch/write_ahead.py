"""The write-ahead file: outcomes that are accepted but not in a journal segment yet, on the run worker's own disk.

A buffer only: losing it costs the work of a second, never a row. One file per (batch, epoch), so that a run that was
overtaken cannot write into its successor's. A line is a CRC-32, a space and JSON; a last line that the death of
the process tore is passed over. Lines reach the kernel before `append` returns: they survive `kill -9`, and
a loss of power costs what is not in a segment.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO, Final

from dim_pipelines.domain.cid import Cid
from dim_pipelines.domain.events import ShardDone, Usage
from dim_pipelines.errors import ConfigurationError, InputError

_SUFFIX: Final = ".wal"


class WriteAhead:
    """The write-ahead file of one run. All calls block for as long as the disk does."""

    def __init__(self, folder: Path, batch: str, epoch: int, work: Cid) -> None:
        """Begin, in `folder`; nothing is written before the first outcome.

        Args:
            folder: where the files of all batches lie.
            batch: the batch's id.
            epoch: the run's epoch.
            work: outcomes of another work are never taken for this one's.
        """
        self._stem = folder / f"{batch}.{epoch:012d}"
        self._work = work
        self._part = 0
        self._file: BinaryIO | None = None

    def append(self, outcomes: Sequence[ShardDone]) -> None:
        """Write outcomes.

        Raises:
            ConfigurationError: the folder cannot be written.
        """
        try:
            if self._file is None:
                self._stem.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._file = self._path(self._part).open("ab", buffering=0)
                self._file.write(_line({"v": 1, "work": str(self._work)}))
            self._file.write(b"".join([_line(_plain(outcome)) for outcome in outcomes]))
        except OSError as error:
            raise ConfigurationError(f"cannot write {self._stem.parent}: {error.strerror}") from error

    def rotate(self) -> int:
        """Begin a new part; give the number of the last part before it, for `drop`."""
        self.close()
        self._part += 1
        return self._part - 1

    def drop(self, part: int) -> None:
        """Remove the parts up to and with `part`: their outcomes are in a segment."""
        for path in sorted(self._stem.parent.glob(f"{self._stem.name}.*{_SUFFIX}")):
            number = path.name.removesuffix(_SUFFIX).rpartition(".")[2]
            if number.isdigit() and int(number) <= part:
                path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the open part; it stays where it is."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _path(self, part: int) -> Path:
        return self._stem.with_name(f"{self._stem.name}.{part:06d}{_SUFFIX}")


def read_write_ahead(folder: Path, batch: str, work: Cid) -> tuple[list[ShardDone], list[Path]]:
    """Read what earlier runs of a batch left behind.

    Returns:
        The outcomes of this work, and all files of the batch: to be removed once the outcomes are in a segment.
    """
    outcomes: list[ShardDone] = []
    files = [
        path
        for path in sorted(folder.glob(f"*{_SUFFIX}"))
        if path.name.removesuffix(_SUFFIX).rsplit(".", 2)[0] == batch
    ]
    for path in files:
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            continue  # the run that owned it has just put it into a segment
        outcomes.extend(_outcomes(data, work))
    return outcomes, files


def remove_files(files: Iterable[Path]) -> None:
    """Remove files that earlier runs left behind."""
    for path in files:
        path.unlink(missing_ok=True)


def _outcomes(data: bytes, work: Cid) -> Iterable[ShardDone]:
    lines = data.split(b"\n")
    header = _value(lines[0])
    if not isinstance(header, dict) or header.get("v") != 1 or header.get("work") != str(work):
        return
    for line in lines[1:]:
        value = _value(line)
        if isinstance(value, list) and len(value) == 9:
            try:
                yield ShardDone(value[0], Cid(bytes.fromhex(value[1])), value[2], value[3], Usage(*value[4:]))
            except (InputError, TypeError, ValueError):
                continue  # a line of another DIM: its shard is computed again


def _line(value: object) -> bytes:
    text = json.dumps(value, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _value(line: bytes) -> object:
    checksum, _, text = line.partition(b" ")
    try:
        if int(checksum, 16) != zlib.crc32(text):
            return None
        value: object = json.loads(text)
    except ValueError:
        return None  # torn by the death of the process
    return value


def _plain(outcome: ShardDone) -> list[object]:
    usage = outcome.usage
    return [
        outcome.shard,
        outcome.output.hex(),  # base32 takes five times as long
        outcome.rows,
        outcome.node,
        usage.rows,
        usage.bytes_in,
        usage.bytes_out,
        usage.compute_ms,
        usage.peak_bytes,
    ]
