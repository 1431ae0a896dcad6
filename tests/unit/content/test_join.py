from __future__ import annotations

import errno
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dim_pipelines.content import join as join_module
from dim_pipelines.content import tables
from dim_pipelines.content.files import add_bytes
from dim_pipelines.content.join import check_writable, dead_path, join
from dim_pipelines.content.manifest import DeadWriter, ShardWriter, write_root
from dim_pipelines.content.memory import MemoryContentStore
from dim_pipelines.content.shards import columns_of, encode_shard
from dim_pipelines.content.tables import preview, read_rows, read_shard
from dim_pipelines.domain.batch import BatchSpec
from dim_pipelines.domain.cid import Cid
from dim_pipelines.domain.dataset import Dataset, Result
from dim_pipelines.errors import ConfigurationError, ContentMismatch, ContentUnavailable, InputError


def spec(**output: Any) -> BatchSpec:
    return BatchSpec.read({"name": "b", "models": ["m"], "input": "x", "output": output})


async def pages_of(store: MemoryContentStore, parts: Sequence[pa.Table]) -> dict[str, Any]:
    writer = ShardWriter(store)
    for part in parts:
        await writer.add(await add_bytes(store, encode_shard(part)), part.num_rows)
    pages = await writer.close()
    columns = columns_of(parts[0].schema) if parts else ()
    return {"pages": pages, "rows": writer.rows, "shards": writer.shards, "columns": columns}


async def made(
    store: MemoryContentStore, inputs: Sequence[pa.Table], outputs: Sequence[pa.Table], dead: Sequence[int | str] = ()
) -> tuple[Cid, Cid]:
    dataset = await write_root(store, Dataset(shard_rows=2, **await pages_of(store, inputs)))
    writer = DeadWriter(store)
    for row in dead:
        await writer.add(row)
    result = Result(work=dataset, dead=await writer.close(), dead_rows=writer.rows, **await pages_of(store, outputs))
    return await write_root(store, result), dataset


def contents(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


INPUTS = [
    pa.table({"id": ["a", "b"], "x": [1.0, 2.0], "image": [b"1", b"2"]}),
    pa.table({"id": ["c"], "x": [3.0], "image": [b"3"]}),
]
OUTPUTS = [
    pa.table({"id": ["a", "b"], "label": [0, 1], "shares": [[0.5, 0.5], [0.0, 1.0]]}),
    pa.table({"id": ["c"], "label": [2], "shares": [[1.0, 0.0]]}),
]


@pytest.fixture
def store() -> MemoryContentStore:
    return MemoryContentStore()


async def test_outputs_stand_beside_their_inputs_without_the_binary_ones(
    store: MemoryContentStore, tmp_path: Path
) -> None:
    told: list[int] = []
    rows = await join(*await made(store, INPUTS, OUTPUTS), spec(), store, tmp_path / "out.parquet", told.append)
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.to_pylist() == [
        {"id": "a", "x": 1.0, "label": 0, "shares": [0.5, 0.5]},
        {"id": "b", "x": 2.0, "label": 1, "shares": [0.0, 1.0]},
        {"id": "c", "x": 3.0, "label": 2, "shares": [1.0, 0.0]},
    ]
    assert (rows, told) == (3, [2, 3])
    assert contents(tmp_path) == ["out.parquet"]


async def test_csv_holds_lists_as_json_and_bytes_as_base64(store: MemoryContentStore, tmp_path: Path) -> None:
    outputs = [
        pa.table({"id": ["a", "b"], "list": [[1, 2], None], "raw": [b"\xff", None], "text": ['say "x"', "a,b\nc"]})
    ]
    path = tmp_path / "out.csv"
    await join(*await made(store, INPUTS[:1], outputs), spec(format="csv"), store, path)
    table = pd.read_csv(path)
    assert list(table.columns) == ["id", "x", "list", "raw", "text"]
    assert table["list"][0] == "[1, 2]"
    assert table["raw"][0] == "/w=="
    assert list(table["text"]) == ['say "x"', "a,b\nc"]
    assert table["list"].isna()[1]


async def test_wanted_outputs_are_kept_in_their_order(store: MemoryContentStore, tmp_path: Path) -> None:
    cids = await made(store, INPUTS, OUTPUTS)
    await join(*cids, spec(columns=["label"]), store, tmp_path / "x.parquet")
    assert pq.read_schema(tmp_path / "x.parquet").names == ["id", "x", "label"]
    with pytest.raises(InputError, match="output column 'lable' is not there") as caught:
        await join(*cids, spec(columns=["lable"]), store, tmp_path / "y.parquet")
    assert caught.value.hint == "did you mean 'label'?"
    assert not (tmp_path / "y.parquet").exists()


async def test_an_output_of_an_inputs_name_gets_another(store: MemoryContentStore, tmp_path: Path) -> None:
    outputs = [pa.table({"id": ["a", "b"], "x": [9, 8]})]
    await join(*await made(store, INPUTS[:1], outputs), spec(), store, tmp_path / "x.parquet")
    assert pq.read_table(tmp_path / "x.parquet").column_names == ["id", "x", "x_output"]


async def test_rows_meet_by_id_where_some_have_no_output(store: MemoryContentStore, tmp_path: Path) -> None:
    outputs = [
        pa.table({"id": ["b"], "label": [1]}),
        pa.table({"id": pa.array([], pa.string()), "label": pa.array([], pa.int64())}),
    ]
    rows = await join(*await made(store, INPUTS, outputs, ["a", "c"]), spec(), store, tmp_path / "x.parquet")
    assert rows == 1
    assert pq.read_table(tmp_path / "x.parquet").to_pylist() == [{"id": "b", "x": 2.0, "label": 1}]
    assert pq.read_table(tmp_path / "x.dead.parquet").column("id").to_pylist() == ["a", "c"]


@pytest.mark.parametrize("ids", [["b", "a"], ["a", "z"], ["a", "a"]])
async def test_outputs_with_foreign_or_disordered_ids_are_refused(
    store: MemoryContentStore, tmp_path: Path, ids: list[str]
) -> None:
    outputs = [pa.table({"id": ids, "label": [1, 2]})]
    with pytest.raises(ContentMismatch, match="does not have in this order"):
        await join(*await made(store, INPUTS[:1], outputs), spec(), store, tmp_path / "x.parquet")
    assert contents(tmp_path) == []


async def test_dead_rows_are_listed_with_their_reasons(store: MemoryContentStore, tmp_path: Path) -> None:
    cids = await made(store, INPUTS, OUTPUTS, ["v", "w"])
    table = pa.table({"row": [7], "id": ["v"], "reason": ["column 'a': null"], "file": ["x.csv"]})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    errors = await add_bytes(store, sink.getvalue().to_pybytes())
    await join(*cids, spec(), store, tmp_path / "x.parquet", errors=errors)
    assert pq.read_table(dead_path(tmp_path / "x.parquet")).to_pylist() == [
        {"id": "v", "row": 7, "reason": "column 'a': null", "file": "x.csv"},
        {"id": "w", "row": None, "reason": None, "file": None},
    ]


async def error_table(store: MemoryContentStore, ids: Sequence[str], batch_rows: int) -> Cid:
    count = len(ids)
    table = pa.table(
        {
            "row": pa.array(range(count), pa.int64()),
            "id": pa.array(ids, pa.string()),
            "reason": pa.array([f"reason {row} " + "x" * 280 for row in ids], pa.string()),
            "file": pa.array(["x.csv"] * count, pa.string()),
        }
    )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=batch_rows)
    return await add_bytes(store, sink.getvalue().to_pybytes())


@pytest.mark.parametrize(("written", "batch_rows"), [(1, 1), (2, 3), (7, 2), (100, 100)])
async def test_dead_rows_meet_their_reasons_whatever_the_batches(
    store: MemoryContentStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int, batch_rows: int
) -> None:
    monkeypatch.setattr(join_module, "_DEAD_ROWS", written)
    cids = await made(store, INPUTS, OUTPUTS, range(7))
    errors = await error_table(store, ["1", "2", "3", "5", "6"], batch_rows)
    await join(*cids, spec(), store, tmp_path / "x.parquet", errors=errors)
    table = pq.read_table(dead_path(tmp_path / "x.parquet"))
    assert table.column("id").to_pylist() == list(range(7))
    assert table.column("row").to_pylist() == [None, 0, 1, 2, None, 3, 4]
    assert [reason and reason.split()[1] for reason in table.column("reason").to_pylist()] == [
        None, "1", "2", "3", None, "5", "6",
    ]  # fmt: skip
    assert contents(tmp_path) == ["x.dead.parquet", "x.parquet"]


async def test_many_dead_rows_take_no_memory(store: MemoryContentStore, tmp_path: Path) -> None:
    count = 60_000
    cids = await made(store, INPUTS, OUTPUTS, range(count))
    errors = await error_table(store, [str(row) for row in range(count)], 4096)
    tracemalloc.start()
    await join(*cids, spec(), store, tmp_path / "x.parquet", errors=errors)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert pq.read_metadata(dead_path(tmp_path / "x.parquet")).num_rows == count
    assert peak < 16 << 20


async def test_a_broken_table_of_reasons_is_an_input_error(store: MemoryContentStore, tmp_path: Path) -> None:
    cids = await made(store, INPUTS, OUTPUTS, ["v"])
    for broken in (b"junk", encode_shard(pa.table({"row": [1]}))):
        with pytest.raises(InputError, match="the table of bad rows"):
            await join(*cids, spec(), store, tmp_path / "x.parquet", errors=await add_bytes(store, broken))
        assert contents(tmp_path) == []


async def test_an_older_table_of_dead_rows_goes_away(store: MemoryContentStore, tmp_path: Path) -> None:
    (tmp_path / "x.dead.parquet").touch()
    await join(*await made(store, INPUTS, OUTPUTS), spec(), store, tmp_path / "x.parquet")
    assert not (tmp_path / "x.dead.parquet").exists()


async def test_what_does_not_belong_together_is_refused(store: MemoryContentStore, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="was not computed from dataset"):
        await join(*await made(store, INPUTS, OUTPUTS[:1]), spec(), store, tmp_path / "x.parquet")
    with pytest.raises(InputError, match="has no rows"):
        await join(*await made(store, [], []), spec(), store, tmp_path / "x.parquet")


@pytest.mark.parametrize(
    ("code", "error"),
    [(errno.ENOSPC, ContentUnavailable), (errno.EDQUOT, ContentUnavailable), (errno.EACCES, ConfigurationError)],
)
async def test_a_failed_write_leaves_what_was_there(
    store: MemoryContentStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, error: type[Exception]
) -> None:
    def refused(*_: object) -> None:
        raise OSError(code, "no")

    path = tmp_path / "x.parquet"
    path.write_bytes(b"older")
    monkeypatch.setattr(join_module, "_write", refused)
    with pytest.raises(error):
        await join(*await made(store, INPUTS, OUTPUTS), spec(), store, path)
    assert contents(tmp_path) == ["x.parquet"]
    assert path.read_bytes() == b"older"


def test_a_place_is_checked_before_any_work(tmp_path: Path) -> None:
    check_writable(tmp_path / "new" / "folder" / "x.parquet")
    assert list((tmp_path / "new" / "folder").iterdir()) == []
    with pytest.raises(ConfigurationError, match="is a folder"):
        check_writable(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="cannot be written: ") as caught:
        check_writable(tmp_path / "file" / "x.parquet")
    assert "folder you may write to" in caught.value.hint
    with pytest.raises(ConfigurationError, match="cannot be written"):
        check_writable(Path("/proc/x.parquet"))


async def test_a_preview_is_the_first_rows(store: MemoryContentStore) -> None:
    root = Dataset(shard_rows=2, **await pages_of(store, INPUTS))
    for rows in (1, 2, 3, 9):
        assert (await preview(store, root, rows)).column("id").to_pylist() == ["a", "b", "c"][:rows]


async def test_many_shards_are_read_in_order_whatever_their_size(
    store: MemoryContentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = [pa.table({"row": [number], "x": [bytes(400_000 if number % 7 == 0 else 10)]}) for number in range(40)]
    root = Dataset(shard_rows=1, **await pages_of(store, parts))
    assert [batch.column(0)[0].as_py() async for _, batch in read_rows(store, root)] == list(range(40))
    monkeypatch.setattr(tables, "_AHEAD_BYTES", 1000)
    assert [index async for index, _ in read_rows(store, root)] == list(range(40))


async def test_a_shard_with_other_rows_than_its_manifest_says_is_refused(store: MemoryContentStore) -> None:
    pages = await pages_of(store, INPUTS)
    writer = ShardWriter(store)
    await writer.add(await add_bytes(store, encode_shard(INPUTS[0])), 5)
    root = Dataset(shard_rows=5, **pages | {"pages": await writer.close(), "rows": 5, "shards": 1})
    with pytest.raises(ContentMismatch, match="shard 0 has 2 rows, the manifest says 5"):
        [batch async for batch in read_rows(store, root)]


async def test_what_is_no_shard_is_an_input_error(store: MemoryContentStore) -> None:
    with pytest.raises(InputError, match="not a shard"):
        await read_shard(store, await add_bytes(store, b"junk"))
