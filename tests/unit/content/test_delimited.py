from __future__ import annotations

import csv
import io
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dim_pipelines.content import delimited
from dim_pipelines.content.delimited import DelimitedSource
from dim_pipelines.errors import InputError


def source(folder: Path, text: bytes) -> DelimitedSource:
    path = folder / "rows.csv"
    path.write_bytes(text)
    return DelimitedSource(path)


def read(folder: Path, text: bytes, **wanted: pa.DataType | None) -> list[dict[str, object]]:
    return [row for batch in source(folder, text).batches(wanted) for row in batch.table.to_pylist()]


@pytest.mark.parametrize(
    "text",
    [
        b"a,b\n1,x\n2,y\n",
        b"a,b\r\n1,x\r\n2,y\r\n",
        b"\xef\xbb\xbfa,b\n1,x\n2,y\n",
        b'\xef\xbb\xbf"a",b\r\n"1","x"\r\n\r\n2,y',
        b"a,b\n\n1,x\n\n2,y\n\n",
    ],
)
def test_marks_line_ends_quotes_and_empty_lines_do_not_matter(tmp_path: Path, text: bytes) -> None:
    assert read(tmp_path, text, a=pa.int64(), b=None) == [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]


@pytest.mark.parametrize(
    ("text", "values", "lines"),
    [
        (b"x\n1\n\n3\n", [1, None, 3], [2, 3, 4]),
        (b"x\r\n\r\n\r\n3\r\n\r\n\r\n", [None, None, 3], [2, 3, 4]),
        (b'\n\nx\n1\n""\n\n3', [1, None, None, 3], [4, 5, 6, 7]),
        (b"x\n\n\n", [], []),
    ],
)
def test_in_a_file_of_one_column_an_empty_line_is_an_empty_value(
    tmp_path: Path, text: bytes, values: list[int | None], lines: list[int]
) -> None:
    batches = list(source(tmp_path, text).batches({"x": pa.int64()}))
    assert [value for batch in batches for value in batch.table.column("x").to_pylist()] == values
    assert [line for batch in batches for line in batch.numbers] == lines


def test_a_quoted_field_may_hold_anything(tmp_path: Path) -> None:
    text = b'a,b\n1,"two\nlines, ""quoted"""\n2,"x\r\ny"\n'
    assert [row["b"] for row in read(tmp_path, text, b=None)] == ['two\nlines, "quoted"', "x\r\ny"]


cell = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)


@given(st.lists(st.tuples(cell, cell, cell), max_size=12), st.sampled_from(["\n", "\r\n"]))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_rows_come_back_with_the_line_they_start_on(tmp_path: Path, rows: list[tuple[str, ...]], end: str) -> None:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator=end, quoting=csv.QUOTE_ALL)
    writer.writerow(("a", "b", "c"))
    starts = []
    for row in rows:
        starts.append(len(file.getvalue().replace("\r\n", "\n").replace("\r", "\n").split("\n")))
        writer.writerow(row)
    made = source(tmp_path, file.getvalue().encode())
    batches = list(made.batches({"c": pa.string(), "a": pa.string()}))
    assert [(r["a"], r["c"]) for b in batches for r in b.table.to_pylist()] == [(a, c) for a, _, c in rows]
    assert [line for batch in batches for line in batch.numbers] == starts


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        (b"", "rows.csv is empty", "the first line"),
        (b"\n\n", "rows.csv is empty", "the first line"),
        (b"a,b,a\n", "rows.csv, line 1: the column 'a' stands twice", ""),
        (b"a,b\n1,2\n1,2,3\n", "rows.csv, line 3: 3 fields, the header has 2", "a comma inside"),
        (b'a,b\n"1\n\n",2\n1\n', "rows.csv, line 5: 1 fields, the header has 2", "a comma inside"),
        (b'a,b\n1,2\n3,"x\ny\n', "rows.csv, line 3: a quote is never closed", ""),
        (b'a,b\n1,"x"y\n', "rows.csv, line 2: ',' expected after '\"'", ""),
        (b"a,b\n1,2\n\xe9,2\n", "rows.csv, line 3: not UTF-8", "convert the file to UTF-8"),
        (b"a,\xe9\n1,2\n", "rows.csv, line 1: not UTF-8", "convert the file to UTF-8"),
        (b"\xff\xfea\x00,\x00", "rows.csv, line 1: not UTF-8", "convert"),
    ],
)
def test_a_broken_file_is_named_with_its_line(tmp_path: Path, text: bytes, message: str, hint: str) -> None:
    with pytest.raises(InputError) as caught:
        read(tmp_path, text, a=pa.int64())
    assert message in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.hint.startswith(hint)


def test_a_missing_file_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no file or folder"):
        DelimitedSource(tmp_path / "none.csv")


def test_a_name_stands_for_a_temporary_path(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"a\n1\n")
    (batch,) = DelimitedSource(path, "ipfs://bafy").batches({"a": pa.int64()})
    assert batch.place(0) == "ipfs://bafy, line 2"
    assert batch.file(0) == "ipfs://bafy"


def test_values_of_another_type_are_bad_rows_with_their_reason(tmp_path: Path) -> None:
    text = b"n,i,b\n1.5,1,true\nx,2,no\n,,\n2,9999999999999999999,false\n"
    made = source(tmp_path, text)
    (batch,) = made.batches({"n": pa.float64(), "i": pa.int64(), "b": pa.bool_()})
    assert batch.bad == {
        1: "column 'n': 'x' is not a number",
        3: "column 'i': '9999999999999999999' is not an integer",
    }
    assert batch.table.column("n").to_pylist()[:3] == [1.5, None, None]
    assert batch.table.column("b").to_pylist() == [True, None, None, False]


def test_a_long_value_is_cut_in_the_message(tmp_path: Path) -> None:
    (batch,) = source(tmp_path, b"n\n" + b"x" * 500 + b"\n").batches({"n": pa.int64()})
    assert batch.bad == {0: f"column 'n': {'x' * 40 + '…'!r} is not an integer"}


@pytest.mark.parametrize(
    ("values", "type_"),
    [
        ([b"1", b"-5", b""], pa.int64()),
        ([b"1", b"2.5"], pa.float64()),
        ([b"007", b"1"], pa.string()),
        ([b"1", b"x"], pa.string()),
        ([b"", b""], pa.string()),
        ([b"99999999999999999999"], pa.float64()),
        ([b"0.5", b"1e3"], pa.float64()),
    ],
)
def test_a_column_without_a_stated_type_gets_that_of_its_first_rows(
    tmp_path: Path, values: list[bytes], type_: pa.DataType
) -> None:
    lines = b"".join(b"r," + value + b"\n" for value in values)
    (batch,) = source(tmp_path, b"k,v\n" + lines).batches({"v": None})
    assert batch.table.schema.field("v").type == type_


def test_a_later_value_of_another_type_is_an_error_with_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delimited, "BATCH_ROWS", 2)
    made = source(tmp_path, b"id\n1\n2\n3\nfour\n")
    with pytest.raises(InputError, match=r"rows\.csv, line 5, column 'id': 'four' is not an integer") as caught:
        list(made.batches({"id": None}))
    assert caught.value.hint == "the first rows of this column are int64"


def test_long_rows_make_small_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delimited, "BATCH_BYTES", 10)
    made = source(tmp_path, b"t\n" + b"abcdef\n" * 5)
    batches = list(made.batches({"t": pa.string()}))
    assert [(batch.first, batch.table.num_rows) for batch in batches] == [(0, 2), (2, 2), (4, 1)]
    assert [batch.place(0) for batch in batches][1].endswith("line 4")


def test_a_file_can_be_read_as_often_as_wanted(tmp_path: Path) -> None:
    made = source(tmp_path, b"a\n1\n")
    (first,), (second,) = made.batches({"a": None}), made.batches({"a": None})
    assert first.table.equals(second.table)
