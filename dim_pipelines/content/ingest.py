"""Ingest: from a file, a folder or a CID to a dataset of shards, as a stream.

Rows are judged here with the same functions that prepare them on a node, so that a bad row is found before
anything was computed. What is in memory at any time: one batch of the reader, the rows of the shard that is
being filled, a few megabytes of finished shards, and 8 or 16 bytes per row for its id.
"""

from __future__ import annotations

import asyncio
import logging
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pyarrow as pa

from dim_pipelines.content.files import add_file, chunked, file_blocks, read_file
from dim_pipelines.content.folders import list_folder, read_folder
from dim_pipelines.content.manifest import DeadWriter, ShardWriter, read_dataset, shards, write_root
from dim_pipelines.content.models import ModelPackage
from dim_pipelines.content.readers import open_path
from dim_pipelines.content.rows import ROW_COLUMN, Judged, RowJudge, check_dataset
from dim_pipelines.content.shards import columns_of, encode_shard
from dim_pipelines.content.source import Source
from dim_pipelines.content.store import Block, ContentStore, Pin, batch_pin
from dim_pipelines.content.tables import read_shard
from dim_pipelines.domain.batch import BatchSpec, InputSpec, RowErrorPolicy
from dim_pipelines.domain.cid import DAG_CBOR, DAG_PB, Cid, looks_like_cid
from dim_pipelines.domain.dataset import MAX_SHARD_BYTES, Dataset
from dim_pipelines.errors import ContentUnavailable, InputError
from dim_pipelines.scheduling.sharding import choose_batch_rows, choose_shard_rows

_PUT_BYTES: Final = 4 << 20
_PUT_BLOCKS: Final = 256
_ERROR_SCHEMA: Final = pa.schema(
    [("row", pa.int64()), ("id", pa.string()), ("reason", pa.string()), ("file", pa.string())]
)

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Ingested:
    """An input that is content now.

    Attributes:
        dataset: CID of the root.
        root: the root itself.
        source: the input's URI as the user wrote it.
        errors: CID of the table of bad rows, an Arrow IPC stream of `row` (number in the input), `id` (as text),
            `reason`, `file`; None when no row is bad.
        notes: remarks for the user, such as files that were passed over.
    """

    dataset: Cid
    root: Dataset
    source: str
    errors: Cid | None = None
    notes: tuple[str, ...] = ()


async def ingest(
    spec: BatchSpec,
    models: Sequence[ModelPackage],
    store: ContentStore,
    *,
    owner: str = "local",
    batch: str,
    progress: Callable[[int], None] | None = None,
) -> Ingested:
    """Bring the input of a batch into the store; a dataset's CID is taken as it is.

    Args:
        spec: what to read and how; `shard_rows` is chosen by `choose_shard_rows` when left out.
        models: whose columns are kept (with the id and the spec's own columns) and by whose inputs rows are judged.
        store: where the shards go.
        owner: whose pins hold them.
        batch: the batch's id.
        progress: is told how many rows were read so far.

    Raises:
        InputError: the input cannot be used; the message names the file and the place, the hint what to do.
        ContentError: the store fails, an `ipfs://` input is not there, or there is no space for temporary files.
    """
    given = spec.input
    if given.format == "dataset" or (
        given.format is None and looks_like_cid(given.uri) and Cid.parse(given.uri).codec == DAG_CBOR
    ):
        return await _taken(given, models, store, batch_pin(owner, batch))
    try:
        with tempfile.TemporaryDirectory(prefix="dim-ingest-") as name:
            folder = Path(name)
            source = await _opened(given, store, folder)
            judge = await asyncio.to_thread(RowJudge, source, spec, [model.description for model in models])
            return await _Filling(spec, models, store, batch_pin(owner, batch), folder).run(source, judge, progress)
    except OSError as error:  # readers translate theirs: what is left are the temporary files
        raise ContentUnavailable(
            f"cannot write temporary files: {error.strerror or error}", hint="free some space, or set TMPDIR"
        ) from error


async def _taken(given: InputSpec, models: Sequence[ModelPackage], store: ContentStore, pin: Pin) -> Ingested:
    """Take a dataset that is there already, once its columns are known to fit the models."""
    cid = Cid.parse(given.uri)
    root = await read_dataset(store, cid)
    async for _, first, _ in shards(store, root):
        rows = await read_shard(store, first)
        check_dataset(rows.schema, given, [model.description for model in models], str(cid))
        break
    await store.pin(cid, pin)
    return Ingested(cid, root, given.uri)


async def _opened(given: InputSpec, store: ContentStore, folder: Path) -> Source:
    if not looks_like_cid(given.uri):
        if given.uri.startswith(("ipfs://", "/ipfs/")):
            Cid.parse(given.uri)
        return await asyncio.to_thread(_open_local, given)
    cid, path = Cid.parse(given.uri), folder / "input"
    if cid.codec == DAG_PB and await _is_folder(store, cid):
        await read_folder(store, cid, path)
    else:
        await read_file(store, cid, path)
    return await asyncio.to_thread(open_path, path, given.format, given.uri)


def _open_local(given: InputSpec) -> Source:
    return open_path(Path(given.uri.removeprefix("file://")).expanduser(), given.format)


async def _is_folder(store: ContentStore, cid: Cid) -> bool:
    try:
        await list_folder(store, cid)
    except InputError:
        return False
    return True


@dataclass
class _Filling:
    """Fills shards with rows, one batch of the reader at a time."""

    spec: BatchSpec
    models: Sequence[ModelPackage]
    store: ContentStore
    pin: Pin
    folder: Path
    shard_rows: int = 0
    read: int = 0
    pending: list[pa.Table] = field(default_factory=list)
    pending_rows: int = 0
    blocks: list[Block] = field(default_factory=list)
    columns: pa.Schema | None = None

    async def run(self, source: Source, judge: RowJudge, progress: Callable[[int], None] | None) -> Ingested:
        manifest = ShardWriter(self.store, pin=self.pin)
        dead = DeadWriter(self.store, pin=self.pin)
        batches = judge.judged()
        with _ErrorTable(self.folder / "errors.arrow") as errors:
            while (judged := await asyncio.to_thread(next, batches, None)) is not None:
                for row in judged.dead:
                    await dead.add(row.id)
                errors.add(judged)
                await self._fill(judged, manifest)
                self.read += judged.rows
                if progress is not None:
                    progress(self.read)
        self._check(self.spec.on_row_error, dead.rows, errors.first)
        if self.pending_rows:
            await self._cut(1, manifest)
        await self._flush()
        assert self.columns is not None
        root = Dataset(
            columns=columns_of(self.columns),
            rows=manifest.rows,
            shards=manifest.shards,
            shard_rows=self.shard_rows,
            pages=await manifest.close(),
            dead=await dead.close(),
            dead_rows=dead.rows,
        )
        table = await add_file(self.store, errors.path, pin=self.pin) if dead.rows else None
        cid = await write_root(self.store, root, self.pin)
        await self.store.sync()
        for note in source.notes:
            _logger.info("remark on the input", extra={"action": "ingest", "note": note})
        return Ingested(cid, root, self.spec.input.uri, table, source.notes)

    def _check(self, policy: RowErrorPolicy, dead: int, first: str) -> None:
        if not self.read:
            raise InputError(f"{self.spec.input.uri} has no rows")
        if dead == self.read:
            raise InputError(f"none of the {dead} rows of {self.spec.input.uri} can be used; the first: {first}")
        if dead > policy.max_error_fraction * self.read:
            raise InputError(
                f"{dead} of {self.read} rows are bad, more than max_error_fraction {policy.max_error_fraction} allows;"
                f" the first: {first}"
            )

    async def _fill(self, judged: Judged, manifest: ShardWriter) -> None:
        if not judged.good.num_rows:
            return
        if not self.shard_rows:
            row_bytes = judged.good.nbytes / judged.good.num_rows
            most = min(model.description.max_batch_rows for model in self.models) if self.models else 1
            self.shard_rows = choose_shard_rows(
                self.spec.shard_rows, choose_batch_rows(self.spec.batch_rows, most), row_bytes
            )
        self.columns = judged.good.schema
        self.pending.append(judged.good)
        self.pending_rows += judged.good.num_rows
        await self._cut(self.pending_rows // self.shard_rows, manifest)
        self._check_size(sum(table.nbytes for table in self.pending), self.pending_rows, manifest.shards)

    async def _cut(self, count: int, manifest: ShardWriter) -> None:
        """Make shards of the pending rows, a few at a time so that they do not pile up in memory."""
        while count:
            table = pa.concat_tables(self.pending)
            few = min(count, max(1, _PUT_BYTES * table.num_rows // (max(table.nbytes, 1) * self.shard_rows)))
            made = await asyncio.to_thread(self._encoded, table, few, manifest.shards)
            rest = table.slice(few * self.shard_rows)
            self.pending, self.pending_rows = ([rest] if rest.num_rows else []), rest.num_rows
            for blocks, rows in made:
                self.blocks += blocks
                await manifest.add(blocks[-1].cid, rows)
            if len(self.blocks) >= _PUT_BLOCKS or sum(len(block.data) for block in self.blocks) >= _PUT_BYTES:
                await self._flush()
            count -= few

    def _encoded(self, table: pa.Table, count: int, first: int) -> list[tuple[list[Block], int]]:
        made = []
        for position in range(count):
            rows = table.slice(position * self.shard_rows, self.shard_rows)
            self._check_size(rows.nbytes, rows.num_rows, first + position)
            data = encode_shard(rows)
            self._check_size(len(data), rows.num_rows, first + position)
            made.append((list(file_blocks(chunked(data))), rows.num_rows))
        return made

    def _check_size(self, size: int, rows: int, number: int) -> None:
        if size > MAX_SHARD_BYTES:
            raise InputError(
                f"shard {number} would have more than {MAX_SHARD_BYTES >> 20} MiB: {rows} rows hold {size >> 20} MiB",
                hint=f"set shard_rows to {max(rows * MAX_SHARD_BYTES // (2 * size), 1)} or less",
            )

    async def _flush(self) -> None:
        if self.blocks:
            await self.store.put(self.blocks, pin=self.pin)
            self.blocks = []


class _ErrorTable:
    """The table of bad rows on its way into a file, so that a million of them take no memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.first = ""
        self._writer = pa.ipc.new_stream(str(path), _ERROR_SCHEMA)

    def __enter__(self) -> _ErrorTable:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()

    def add(self, judged: Judged) -> None:
        if judged.dead:
            self.first = self.first or f"{judged.dead[0].place}: {judged.dead[0].reason}"
            rows = [[row.number, str(row.id), row.reason, row.file] for row in judged.dead]
            arrays = [
                pa.array(list(column), type_.type)
                for column, type_ in zip(zip(*rows, strict=True), _ERROR_SCHEMA, strict=True)
            ]
            self._writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=_ERROR_SCHEMA))


__all__ = ["ROW_COLUMN", "Ingested", "ingest"]
