from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from dim_pipelines.content import ingest as ingest_module
from dim_pipelines.content import readers
from dim_pipelines.content.files import add_bytes, read_bytes
from dim_pipelines.content.folders import add_folder
from dim_pipelines.content.ingest import Ingested, ingest
from dim_pipelines.content.manifest import dead_ids, shards
from dim_pipelines.content.memory import MemoryContentStore
from dim_pipelines.content.models import ModelPackage
from dim_pipelines.content.store import BATCH_LIFETIME_S
from dim_pipelines.content.tables import read_rows
from dim_pipelines.domain.batch import BatchSpec
from dim_pipelines.domain.cid import RAW, Cid
from dim_pipelines.domain.model import ModelDescription
from dim_pipelines.errors import ContentNotFound, ContentUnavailable, InputError


def model(*inputs: dict[str, Any]) -> ModelPackage:
    description = ModelDescription.model_validate(
        {"name": "m", "version": "1", "engine": "echo", "inputs": list(inputs), "licence": "MIT"}
    )
    return ModelPackage(Cid.of(RAW, b"model"), description)


NUMBERS = model({"name": "a", "datatype": "FP32", "shape": []}, {"name": "b", "datatype": "INT64", "shape": []})
IMAGES = model(
    {
        "name": "x",
        "datatype": "UINT8",
        "shape": [1, -1, -1],
        "column": "image",
        "preprocess": [{"op": "decode_image", "mode": "L"}],
    }
)


def spec(uri: object, **changes: Any) -> BatchSpec:
    given = {"uri": str(uri), **changes.pop("input", {})}
    return BatchSpec.read({"name": "b", "models": ["m"], "input": given, "shard_rows": 2, "batch_rows": 2, **changes})


@pytest.fixture
def store() -> MemoryContentStore:
    return MemoryContentStore()


@pytest.fixture
def csv(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "rows.csv"
        path.write_text(text)
        return path

    return write


async def rows_of(store: MemoryContentStore, done: Ingested) -> list[dict[str, Any]]:
    return [row async for _, batch in read_rows(store, done.root) for row in batch.to_pylist()]


async def errors_of(store: MemoryContentStore, done: Ingested) -> list[dict[str, Any]]:
    assert done.errors is not None
    with pa.ipc.open_stream(await read_bytes(store, done.errors)) as reader:
        rows: list[dict[str, Any]] = reader.read_all().to_pylist()
    return rows


def png(size: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.zeros((size, size), np.uint8)).save(file, "PNG")
    return file.getvalue()


async def test_a_table_becomes_shards_of_the_stated_size(store: MemoryContentStore, csv: Callable[[str], Path]) -> None:
    told: list[int] = []
    done = await ingest(
        spec(csv("name,b,a,c\nx,1,0.5,u\ny,2,1.5,v\nz,3,2,w\n"), input={"id_column": "name"}),
        [NUMBERS],
        store,
        batch="b1",
        progress=told.append,
    )
    assert await rows_of(store, done) == [
        {"name": "x", "a": 0.5, "b": 1},
        {"name": "y", "a": 1.5, "b": 2},
        {"name": "z", "a": 2.0, "b": 3},
    ]
    assert [rows async for _, _, rows in shards(store, done.root)] == [2, 1]
    assert (done.root.rows, done.root.shards, done.root.shard_rows, done.root.dead_rows) == (3, 2, 2, 0)
    assert [column.type for column in done.root.columns] == ["string", "double", "int64"]
    assert (done.dataset, told, done.errors) == (done.root.cid(), [3], None)


async def test_the_dataset_is_held_for_its_time(store: MemoryContentStore, csv: Callable[[str], Path]) -> None:
    done = await ingest(spec(csv("a,b\n1,2\n")), [NUMBERS], store, owner="ada", batch="b1")
    pin = dict(await store.pins())[done.dataset]
    assert (pin.owner, pin.label) == ("ada", "batch/b1")
    assert pin.expires_ms is not None
    now_ms = pin.expires_ms - BATCH_LIFETIME_S * 1000
    assert (await store.collect(now_ms, grace_s=0)).blocks == 0
    assert (await store.collect(pin.expires_ms + 1, grace_s=-1)).blocks > 0


async def test_rows_without_an_id_column_are_numbered(store: MemoryContentStore, csv: Callable[[str], Path]) -> None:
    done = await ingest(spec(csv("a,b\n1,2\n3,4\n5,6\n")), [NUMBERS], store, batch="b")
    assert [row["row"] for row in await rows_of(store, done)] == [0, 1, 2]


async def test_the_same_rows_are_the_same_dataset_from_csv_and_parquet(
    store: MemoryContentStore, csv: Callable[[str], Path], tmp_path: Path
) -> None:
    from_csv = await ingest(spec(csv("a,b\n1,2\n3.5,4\n")), [NUMBERS], store, batch="b")
    table = pa.table({"b": pa.array([2, 4]), "z": ["u", "v"], "a": pa.array([1.0, 3.5])})
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=1)
    from_parquet = await ingest(spec(tmp_path / "x.parquet"), [NUMBERS], store, batch="other")
    assert from_csv.dataset == from_parquet.dataset


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=30), st.integers(1, 9), st.integers(1, 9))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_how_a_file_is_read_does_not_show(
    tmp_path: Path, values: list[float], shard_rows: int, read_rows: int
) -> None:
    store = MemoryContentStore()
    table = pa.table({"a": values, "b": list(range(len(values)))})
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=read_rows)
    once = await ingest(spec(tmp_path / "x.parquet", shard_rows=shard_rows), [NUMBERS], store, batch="b")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "BATCH_ROWS", read_rows)
        again = await ingest(spec(tmp_path / "x.parquet", shard_rows=shard_rows), [NUMBERS], store, batch="b")
    assert once.dataset == again.dataset
    assert [rows async for _, _, rows in shards(store, once.root)] == [
        min(shard_rows, len(values) - start) for start in range(0, len(values), shard_rows)
    ]


async def test_named_columns_are_kept_beside_the_models(store: MemoryContentStore, csv: Callable[[str], Path]) -> None:
    made = spec(csv("a,b,c,d\n1,2,u,9\n"), input={"columns": ["c", "b", "a", "c"]})
    assert await rows_of(store, await ingest(made, [NUMBERS], store, batch="b")) == [
        {"row": 0, "c": "u", "b": 2, "a": 1.0}
    ]


async def test_the_id_may_feed_the_model(store: MemoryContentStore, csv: Callable[[str], Path]) -> None:
    done = await ingest(spec(csv("a,b\n1,2\n"), input={"id_column": "b"}), [NUMBERS], store, batch="b")
    assert await rows_of(store, done) == [{"b": 2, "a": 1.0}]


async def test_shards_get_a_size_when_none_is_stated(store: MemoryContentStore, csv: Callable[[str], Path]) -> None:
    done = await ingest(spec(csv("a,b\n1,2\n"), shard_rows=None, batch_rows=None), [NUMBERS], store, batch="b")
    assert done.root.shard_rows == 1024


async def test_large_shards_are_files(store: MemoryContentStore, tmp_path: Path) -> None:
    pq.write_table(pa.table({"t": [b"x" * 200_000, b"y" * 200_000]}), tmp_path / "x.parquet")
    bytes_model = model({"name": "t", "datatype": "BYTES", "shape": []})
    done = await ingest(spec(tmp_path / "x.parquet"), [bytes_model], store, batch="b")
    ((_, cid, _),) = [shard async for shard in shards(store, done.root)]
    assert cid.codec != RAW
    assert [row["t"][:1] for row in await rows_of(store, done)] == [b"x", b"y"]


async def test_images_are_named_by_their_paths(store: MemoryContentStore, tmp_path: Path) -> None:
    for name in ("b.png", "a.png"):
        (tmp_path / name).write_bytes(png(2))
    (tmp_path / "labels.csv").write_text("path,label\n")
    done = await ingest(spec(tmp_path), [IMAGES], store, batch="b")
    assert [row["path"] for row in await rows_of(store, done)] == ["a.png", "b.png"]
    assert done.notes == ("passed over, not images by their names: 1 .csv",)


async def test_what_ipfs_names_is_read(store: MemoryContentStore, tmp_path: Path) -> None:
    folder = await add_folder(store, {"a.png": png(2), "sub/b.png": png(2)})
    done = await ingest(spec(f"ipfs://{folder}"), [IMAGES], store, batch="b")
    assert [row["path"] for row in await rows_of(store, done)] == ["a.png", "sub/b.png"]
    table = io.BytesIO()
    pq.write_table(pa.table({"a": np.arange(1e5), "b": np.arange(100_000)}), table)
    for content in (b"a,b\n1,2\n", table.getvalue()):
        cid = await add_bytes(store, content)
        assert (await ingest(spec(cid, shard_rows=50_000), [NUMBERS], store, batch="b")).source == str(cid)
    broken = await add_bytes(store, b"a,b\n1\n")
    with pytest.raises(InputError, match=f"^ipfs://{broken}, line 2: 1 fields"):
        await ingest(spec(f"ipfs://{broken}"), [NUMBERS], store, batch="b")
    with pytest.raises(ContentNotFound):
        await ingest(spec(f"ipfs://{Cid.of(RAW, b'nowhere')}"), [NUMBERS], store, batch="b")
    with pytest.raises(InputError, match="not a CID"):
        await ingest(spec("ipfs://nonsense"), [NUMBERS], store, batch="b")


async def test_a_dataset_is_taken_as_it_is(store: MemoryContentStore, csv: Callable[[str], Path]) -> None:
    done = await ingest(spec(csv("id,a,b\nx,1,2\n"), input={"id_column": "id"}), [NUMBERS], store, batch="b")
    blocks = set(store._blocks)
    again = await ingest(spec(done.dataset), [NUMBERS], store, owner="ada", batch="c")
    assert (again.dataset, again.root) == (done.dataset, done.root)
    assert set(store._blocks) == blocks
    assert ("ada", "batch/c") in {(pin.owner, pin.label) for _, pin in await store.pins()}
    stated = spec(f"/ipfs/{done.dataset}", input={"format": "dataset", "id_column": "id"})
    assert (await ingest(stated, [NUMBERS], store, batch="d")).dataset == done.dataset


@pytest.mark.parametrize(
    ("wanted", "changes", "message"),
    [
        (model({"name": "c", "datatype": "FP32", "shape": []}), {}, "the model's input column 'c' is not there"),
        (model({"name": "a", "datatype": "FP32", "shape": [4]}), {}, r"column 'a': shape \[4\] per row is expected"),
        (NUMBERS, {"id_column": "a"}, "its id column is 'id', not 'a'"),
    ],
)
async def test_a_dataset_that_does_not_fit_is_refused(
    store: MemoryContentStore,
    csv: Callable[[str], Path],
    wanted: ModelPackage,
    changes: dict[str, Any],
    message: str,
) -> None:
    done = await ingest(spec(csv("id,a,b\nx,1,2\n"), input={"id_column": "id"}), [NUMBERS], store, batch="b")
    with pytest.raises(InputError, match=message):
        await ingest(spec(done.dataset, input=changes), [wanted], store, batch="c")


@pytest.mark.parametrize(
    ("text", "given", "message", "hint"),
    [
        ("a,b\n", {}, "rows.csv has no rows", ""),
        ("a,bb\n1,2\n", {}, "the model's input column 'b' is not there", "did you mean 'bb'?"),
        ("a,b\n1,2\n", {"id_column": "B"}, "id column 'B' is not there", "did you mean 'b'?"),
        ("a,b\n1,2\n", {"columns": ["a", "bb"]}, "column 'bb' is not there", "did you mean 'b'?"),
        ("a,b\n1,2\n", {"columns": ["a"]}, "the model reads column 'b', which 'columns' leaves out", ""),
        ("id,a,b\n1,1,2\n2,1,2\n1,1,2\n", {"id_column": "id"}, "line 4, id column 'id': 1 stands twice", "an id must"),
        ("id,a,b\nx,1,2\nx,1,2\n", {"id_column": "id"}, "line 3, id column 'id': 'x' stands twice", "an id must"),
        ("id,a,b\nx,1,2\n,1,2\n", {"id_column": "id"}, "line 3, id column 'id': null", "every row needs an id"),
        ("id,a,b\n1,1,2\n,1,2\n", {"id_column": "id"}, "line 3, id column 'id': null", "every row needs an id"),
        ("id,a,b\n1.5,1,2\n", {"id_column": "id"}, "ids are integers or texts, found double", "choose another"),
        (
            "id,a,b\n" + "x" * 5000 + ",1,2\n",
            {"id_column": "id"},
            "line 2, id column 'id': the id has more than 4096",
            "",
        ),
        ("a,b\n1,2\n,2\n", {}, "line 3: column 'a': null", "mend the row"),
        ("a,b\nnan,2\n", {}, "line 2: column 'a': NaN", "mend the row"),
        ('a,b\n"\n",2\n', {}, "line 2: column 'a': '\\n' is not a number", "mend the row"),
        ("a,b\n1,2.5\n", {}, "line 2: column 'b': '2.5' is not an integer", "mend the row"),
        ("row,a,b\n1,2,3\n", {"columns": ["row", "a", "b"]}, "'row' has the name that row numbers get", "name an id"),
    ],
)
async def test_bad_input_is_one_line_that_says_where(
    store: MemoryContentStore, csv: Callable[[str], Path], text: str, given: dict[str, Any], message: str, hint: str
) -> None:
    with pytest.raises(InputError) as caught:
        await ingest(spec(csv(text), input=given), [NUMBERS], store, batch="b")
    assert message in caught.value.message
    assert "rows.csv" in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.hint.startswith(hint)


@pytest.mark.parametrize(
    ("column", "wanted", "message"),
    [
        (pa.array(["x"]), {"datatype": "FP32", "shape": []}, r"takes FP32 \[\] per row, found a column of string"),
        (pa.array([1.5]), {"datatype": "INT64", "shape": []}, r"takes INT64 \[\] per row, found a column of double"),
        (pa.array([[1.0]], pa.list_(pa.float32(), 1)), {"datatype": "FP32", "shape": [4]}, r"shape \[4\] per row"),
        (pa.array([[1.0]]), {"datatype": "FP32", "shape": [4]}, r"row 0: column 'x': shape \[4\] is expected, found 1"),
        (
            pa.array([5000000000]),
            {"datatype": "INT32", "shape": []},
            "row 0: column 'x': the value 5000000000 does not",
        ),
        (pa.array([{"a": 1}]), {"datatype": "FP32", "shape": []}, "found a column of struct"),
        (pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int8())), {"datatype": "FP32", "shape": []}, "cannot go into"),
    ],
)
async def test_columns_of_parquet_that_do_not_fit(
    store: MemoryContentStore, tmp_path: Path, column: pa.Array, wanted: dict[str, Any], message: str
) -> None:
    pq.write_table(pa.table({"x": column}), tmp_path / "x.parquet")
    with pytest.raises(InputError, match=message):
        await ingest(spec(tmp_path / "x.parquet"), [model({"name": "x", **wanted})], store, batch="b")


async def test_integer_ids_are_int64(store: MemoryContentStore, tmp_path: Path) -> None:
    for ids in (pa.array([7], pa.uint8()), pa.array([7], pa.uint64())):
        pq.write_table(pa.table({"id": ids, "a": [1.0], "b": [2]}), tmp_path / "x.parquet")
        done = await ingest(spec(tmp_path / "x.parquet", input={"id_column": "id"}), [NUMBERS], store, batch="b")
        assert done.root.columns[0].type == "int64"
    pq.write_table(pa.table({"id": pa.array([2**63], pa.uint64()), "a": [1.0], "b": [2]}), tmp_path / "x.parquet")
    with pytest.raises(InputError, match="does not fit int64"):
        await ingest(spec(tmp_path / "x.parquet", input={"id_column": "id"}), [NUMBERS], store, batch="b")


async def test_bad_rows_are_set_aside_when_the_spec_says_so(
    store: MemoryContentStore, csv: Callable[[str], Path]
) -> None:
    path = csv("id,a,b\nu,1,2\nv,,2\nw,3,4\nx,5,six\ny,7,8\n")
    done = await ingest(spec(path, input={"id_column": "id"}, on_row_error="dead_letter"), [NUMBERS], store, batch="b")
    assert [row["id"] for row in await rows_of(store, done)] == ["u", "w", "y"]
    assert [row async for row in dead_ids(store, done.root)] == ["v", "x"]
    assert await errors_of(store, done) == [
        {"row": 1, "id": "v", "reason": "column 'a': null", "file": str(path)},
        {"row": 3, "id": "x", "reason": "column 'b': 'six' is not an integer", "file": str(path)},
    ]


async def test_images_that_do_not_decode_are_set_aside(store: MemoryContentStore, tmp_path: Path) -> None:
    for name, content in {"a.png": b"junk", "b.png": png(2), "c.png": b"", "d.png": png(3), "e.png": png(2)}.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=r"a\.png: column 'image': the image does not decode"):
        await ingest(spec(tmp_path), [IMAGES], store, batch="b")
    done = await ingest(spec(tmp_path, on_row_error="dead_letter"), [IMAGES], store, batch="b")
    assert [row["path"] for row in await rows_of(store, done)] == ["b.png", "e.png"]
    assert [(row["row"], row["reason"]) for row in await errors_of(store, done)] == [
        (0, "column 'image': the image does not decode"),
        (2, "the file is empty"),
        (3, "column 'image': shape [1, 2, 2] is expected, the image gives [1, 3, 3]"),
    ]


async def test_an_open_size_is_settled_once_for_the_whole_input(
    store: MemoryContentStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, size in {"a.png": 2, "b.png": 2, "c.png": 3}.items():
        (tmp_path / name).write_bytes(png(size))
    monkeypatch.setattr(readers, "BATCH_ROWS", 1)
    with pytest.raises(InputError, match=r"c\.png: column 'image': shape \[1, 2, 2\] is expected"):
        await ingest(spec(tmp_path), [IMAGES], store, batch="b")


OPEN = model(
    {"name": "x", "datatype": "FP16", "shape": [-1]},
    {"name": "y", "datatype": "FP32", "shape": []},
)


@pytest.mark.parametrize("read_rows", [1, 2, 100])
async def test_only_a_row_that_is_good_in_all_respects_settles_an_open_size(
    store: MemoryContentStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read_rows: int
) -> None:
    nan = float("nan")
    values = [[nan], None, [None], [1e9], [5.0, 6.0, 7.0], [1.0, 2.0], [3.0], [3.0, 4.0]]
    others = [1.0, 1.0, 1.0, 1.0, nan, 1.0, 1.0, 1.0]
    pq.write_table(pa.table({"x": values, "y": others}), tmp_path / "x.parquet")
    monkeypatch.setattr(readers, "BATCH_ROWS", read_rows)
    for models in ([OPEN], [model({"name": "y", "datatype": "FP32", "shape": []}), OPEN]):
        done = await ingest(spec(tmp_path / "x.parquet", on_row_error="dead_letter"), models, store, batch="b")
        assert [row["x"] for row in await rows_of(store, done)] == [[1.0, 2.0], [3.0, 4.0]]
        assert [row async for row in dead_ids(store, done.root)] == [0, 1, 2, 3, 4, 6]


async def test_an_empty_line_of_a_single_column_is_a_row(store: MemoryContentStore, csv: Callable[[str], Path]) -> None:
    one = model({"name": "x", "datatype": "FP32", "shape": []})
    path = csv("x\n1\n\n3\n\n")
    with pytest.raises(InputError, match="line 3: column 'x': null"):
        await ingest(spec(path), [one], store, batch="b")
    done = await ingest(spec(path, on_row_error="dead_letter"), [one], store, batch="b")
    assert await rows_of(store, done) == [{"row": 0, "x": 1.0}, {"row": 2, "x": 3.0}]
    assert [row async for row in dead_ids(store, done.root)] == [1]


@pytest.mark.parametrize("text", ["id,a,b\nx,1,2\nx,,2\n", "id,a,b\nx,1,2\n,1,2\n"])
async def test_ids_are_never_forgiven(store: MemoryContentStore, csv: Callable[[str], Path], text: str) -> None:
    made = spec(csv(text), input={"id_column": "id"}, on_row_error="dead_letter")
    with pytest.raises(InputError, match="line 3, id column"):
        await ingest(made, [NUMBERS], store, batch="b")


async def test_too_many_bad_rows_end_the_batch(store: MemoryContentStore, csv: Callable[[str], Path]) -> None:
    path = csv("a,b\n1,2\n,2\n,4\n5,6\n")
    for fraction in (0.5, 0.6):
        policy = {"policy": "dead_letter", "max_error_fraction": fraction}
        assert (await ingest(spec(path, on_row_error=policy), [NUMBERS], store, batch="b")).root.dead_rows == 2
    policy = {"policy": "dead_letter", "max_error_fraction": 0.49}
    with pytest.raises(InputError, match=r"2 of 4 rows are bad, .* the first: .*line 3: column 'a': null"):
        await ingest(spec(path, on_row_error=policy), [NUMBERS], store, batch="b")


async def test_an_input_without_one_good_row_is_an_error(store: MemoryContentStore, csv: Callable[[str], Path]) -> None:
    with pytest.raises(
        InputError, match=r"none of the 2 rows of .* can be used; the first: .*line 2: column 'a': null"
    ):
        await ingest(spec(csv("a,b\n,1\n,2\n"), on_row_error="dead_letter"), [NUMBERS], store, batch="b")


async def test_a_shard_that_would_be_too_large_names_the_setting(
    store: MemoryContentStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest_module, "MAX_SHARD_BYTES", 1 << 20)
    pq.write_table(pa.table({"t": [b"x" * 300_000] * 9}), tmp_path / "x.parquet")
    bytes_model = model({"name": "t", "datatype": "BYTES", "shape": []})
    for shard_rows in (4, 100):
        with pytest.raises(InputError, match="shard 0 would have more than 1 MiB") as caught:
            await ingest(spec(tmp_path / "x.parquet", shard_rows=shard_rows), [bytes_model], store, batch="b")
        assert caught.value.hint == "set shard_rows to 1 or less"
    done = await ingest(spec(tmp_path / "x.parquet", shard_rows=3), [bytes_model], store, batch="b")
    assert done.root.shards == 3


async def test_many_blocks_travel_together(store: MemoryContentStore, csv: Callable[[str], Path]) -> None:
    puts: list[int] = []
    put = store.put

    async def counted(blocks: Any, *, pin: Any = None) -> None:
        puts.append(len(blocks))
        await put(blocks, pin=pin)

    store.put = counted  # type: ignore[method-assign]
    path = csv("a,b\n" + "".join(f"{number},1\n" for number in range(700)))
    done = await ingest(spec(path, shard_rows=1), [NUMBERS], store, batch="b")
    assert done.root.shards == 700
    assert len(puts) < 10


async def test_no_space_for_temporary_files_is_said(
    store: MemoryContentStore, csv: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(**_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ingest_module.tempfile, "TemporaryDirectory", full)
    with pytest.raises(ContentUnavailable, match="cannot write temporary files: No space left") as caught:
        await ingest(spec(csv("a,b\n1,2\n")), [NUMBERS], store, batch="b")
    assert "TMPDIR" in caught.value.hint
