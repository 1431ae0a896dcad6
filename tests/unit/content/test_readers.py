from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dim_pipelines.content import readers
from dim_pipelines.content.delimited import DelimitedSource
from dim_pipelines.content.readers import ImageSource, ParquetSource, open_path
from dim_pipelines.errors import InputError

WANTED = {"path": pa.string(), "image": pa.binary()}


def image(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((2, 2), np.uint8)).save(path)
    return path


def parquet(path: Path, **columns: object) -> Path:
    pq.write_table(pa.table(columns), path, row_group_size=3)
    return path


def test_parquet_keeps_its_types_and_numbers_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "BATCH_ROWS", 2)
    path = parquet(tmp_path / "x.parquet", a=[1, 2, 3, 4, 5], b=list("abcde"), c=[1.0] * 5)
    source = ParquetSource(path)
    assert source.schema.names == ["a", "b", "c"]
    batches = list(source.batches({"b": None, "a": pa.string()}))
    assert [row for batch in batches for row in batch.table.to_pylist()] == [
        {"b": b, "a": a} for a, b in zip([1, 2, 3, 4, 5], "abcde", strict=True)
    ]
    assert [batch.first for batch in batches] == [0, 2, 4]
    assert batches[1].place(1) == f"{path}, row 3"
    assert batches[1].file(1) == str(path)


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "is empty"), (b"PAR1 and no more", "is not a Parquet file"), (b"x" * 99, "is not a")]
)
def test_what_is_no_parquet_is_an_input_error(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x.parquet").write_bytes(content)
    with pytest.raises(InputError, match=message):
        ParquetSource(tmp_path / "x.parquet")


def test_a_parquet_file_that_is_broken_inside_is_an_input_error(tmp_path: Path) -> None:
    path = parquet(tmp_path / "x.parquet", a=list(range(9000)))
    data = bytearray(path.read_bytes())
    data[4:200] = bytes(196)
    path.write_bytes(data)
    with pytest.raises(InputError, match="is broken after row 0"):
        list(ParquetSource(path).batches({"a": None}))


def test_text_in_parquet_that_is_not_utf8_is_an_input_error(tmp_path: Path) -> None:
    wrong = pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xff\xfe"], pa.binary()).buffers())
    pq.write_table(pa.table({"t": wrong}), tmp_path / "x.parquet", store_schema=False)
    with pytest.raises(InputError, match="is broken after row 0"):
        list(ParquetSource(tmp_path / "x.parquet").batches({"t": None}))


def test_a_folder_of_images_is_sorted_by_relative_path(tmp_path: Path) -> None:
    for name in ("b/2.png", "a.PNG", "b/10.jpg", "c.txt", ".hidden.png", ".git/x.png", "labels.csv", "README"):
        image(tmp_path / name) if name.lower().endswith(("png", "jpg")) else (tmp_path / name).write_text("x")
    source = ImageSource(tmp_path)
    (batch,) = source.batches(WANTED)
    assert batch.table.column("path").to_pylist() == ["a.PNG", "b/10.jpg", "b/2.png"]
    assert batch.table.column("image")[0].as_py() == (tmp_path / "a.PNG").read_bytes()
    assert source.notes == ("passed over, not images by their names: 1 .csv, 1 .txt, 1 no suffix",)
    assert batch.place(1) == batch.file(1) == str(tmp_path / "b/10.jpg")


def test_one_image_is_one_row(tmp_path: Path) -> None:
    path = image(tmp_path / "one.png")
    (batch,) = ImageSource(path).batches(WANTED)
    assert batch.table.column("path").to_pylist() == ["one.png"]
    (named,) = ImageSource(path, "ipfs://bafy").batches({"path": pa.string()})
    assert named.table.to_pylist() == [{"path": "ipfs://bafy"}]
    assert named.place(0) == "ipfs://bafy"


def test_batches_of_images_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        image(tmp_path / f"{number}.png")
    monkeypatch.setattr(readers, "BATCH_ROWS", 2)
    batches = list(ImageSource(tmp_path).batches(WANTED))
    assert [(batch.first, batch.table.num_rows) for batch in batches] == [(0, 2), (2, 2), (4, 1)]
    assert batches[2].place(0) == str(tmp_path / "4.png")
    monkeypatch.setattr(readers, "BATCH_BYTES", 1)
    assert len(list(ImageSource(tmp_path).batches(WANTED))) == 5


def test_images_that_cannot_be_read_are_bad_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty.png").touch()
    image(tmp_path / "good.png")
    (tmp_path / "large.png").write_bytes(bytes(999))
    (tmp_path / "locked.png").mkdir()
    monkeypatch.setattr(readers, "MAX_IMAGE_BYTES", 500)
    monkeypatch.setattr(readers, "_listed", lambda folder: (["empty.png", "good.png", "large.png", "locked.png"], {}))
    (batch,) = ImageSource(tmp_path).batches(WANTED)
    bad = dict(batch.bad)
    assert bad.pop(0) == "the file is empty"
    assert bad.pop(2) == "the file has 999 bytes, the limit is 500"
    monkeypatch.setattr(readers, "MAX_IMAGE_BYTES", 1 << 20)
    (batch,) = ImageSource(tmp_path).batches(WANTED)
    assert batch.bad[3] == "the file cannot be read: Is a directory"


def test_an_image_that_went_away_is_an_error(tmp_path: Path) -> None:
    source = ImageSource(image(tmp_path / "a.png").parent)
    (tmp_path / "a.png").unlink()
    with pytest.raises(InputError, match=r"there is no file or folder .*a\.png"):
        list(source.batches(WANTED))


@pytest.mark.parametrize(("names", "found"), [([], ""), (["a.txt", "b.csv"], "(it has 1 .csv, 1 .txt)")])
def test_a_folder_without_images_says_what_it_has(tmp_path: Path, names: list[str], found: str) -> None:
    for name in names:
        (tmp_path / name).write_text("x")
    with pytest.raises(InputError) as caught:
        ImageSource(tmp_path)
    assert "holds no images" in caught.value.message
    assert found in caught.value.message
    assert ".png" in caught.value.hint


def test_a_name_that_is_no_text_is_an_error(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"\xff.png")).write_bytes(b"x")
    with pytest.raises(InputError, match="not UTF-8"):
        ImageSource(tmp_path)


def test_a_folder_that_cannot_be_listed_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(InputError, match=r"cannot read .*: Permission denied"):
        ImageSource(tmp_path)


def file(kind: str) -> bytes:
    made = io.BytesIO()
    if kind == "parquet":
        pq.write_table(pa.table({"a": [1]}), made)
    elif kind == "csv":
        made.write(b"a,b\n1,2\n")
    else:
        Image.fromarray(np.zeros((2, 2), np.uint8)).save(made, kind)
    return made.getvalue()


@pytest.mark.parametrize(
    ("name", "kind", "reader"),
    [
        ("x.parquet", "parquet", ParquetSource),
        ("x.PQ", "parquet", ParquetSource),
        ("x", "parquet", ParquetSource),
        ("x.csv", "csv", DelimitedSource),
        ("x.data", "csv", DelimitedSource),
        ("x.png", "png", ImageSource),
        *[("x", kind, ImageSource) for kind in ("png", "jpeg", "gif", "bmp", "tiff", "webp")],
    ],
)
def test_the_format_is_found_from_the_name_or_the_content(tmp_path: Path, name: str, kind: str, reader: type) -> None:
    (tmp_path / name).write_bytes(file(kind))
    assert isinstance(open_path(tmp_path / name, None), reader)


def test_a_stated_format_counts(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes(b"a\n1\n")
    assert isinstance(open_path(tmp_path / "x.txt", "csv"), DelimitedSource)
    assert isinstance(open_path(image(tmp_path / "i" / "x.png").parent, None), ImageSource)


@pytest.mark.parametrize("content", [b"\0\1\2,", b"words and no comma"])
def test_what_nothing_is_known_of_asks_for_the_format(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(InputError, match="cannot tell how to read") as caught:
        open_path(tmp_path / "x", None)
    assert "format" in caught.value.hint


def test_missing_empty_and_misnamed_inputs(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no file or folder"):
        open_path(tmp_path / "none", None)
    (tmp_path / "x").touch()
    with pytest.raises(InputError, match="x is empty"):
        open_path(tmp_path / "x", None)
    with pytest.raises(InputError, match="is a folder, csv is read from a file"):
        open_path(tmp_path, "csv")
    with pytest.raises(InputError, match="is not a dataset"):
        open_path(tmp_path / "x", "dataset")


def test_a_file_that_may_not_be_read_is_an_input_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = parquet(tmp_path / "x", a=[1])

    def refused(*args: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(readers.pq, "ParquetFile", refused)
    with pytest.raises(InputError, match=r"cannot read .*: Permission denied"):
        ParquetSource(path)
    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(InputError, match=r"cannot read .*: Permission denied"):
        open_path(path, None)
