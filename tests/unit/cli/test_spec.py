from __future__ import annotations

from pathlib import Path

import pytest

from dim_pipelines.cli.spec import RowErrors, model_folder, plain_spec, read_spec
from dim_pipelines.domain.batch import BatchSpec
from dim_pipelines.domain.cid import RAW, Cid
from dim_pipelines.errors import InputError

CID = str(Cid.of(RAW, b"rows"))


def test_options_become_a_spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plain = plain_spec("m", "rows.csv", Path("out.csv"), "a, b,", "id", 32, 8, RowErrors.DEAD_LETTER)
    spec = BatchSpec.read(plain)
    assert spec.name == "rows"
    assert spec.input.uri == str(tmp_path / "rows.csv")
    assert spec.input.columns == ("a", "b")
    assert (spec.input.id_column, spec.shard_rows, spec.batch_rows) == ("id", 32, 8)
    assert spec.on_row_error.policy == "dead_letter"
    assert spec.output.format == "csv"


def test_what_was_left_out_stays_out() -> None:
    spec = BatchSpec.read(plain_spec("m", CID, Path("out.parquet"), None, None, None, None, RowErrors.FAIL))
    assert spec.input.uri == CID
    assert spec.input.columns is None and spec.shard_rows is None and spec.batch_rows is None


@pytest.mark.parametrize("uri", [CID, f"ipfs://{CID}", f"/ipfs/{CID}"])
def test_a_cid_is_no_path(uri: str) -> None:
    assert plain_spec("m", uri, None, None, None, None, None, RowErrors.FAIL)["input"]["uri"] == uri


def test_a_spec_files_paths_are_relative_to_it(tmp_path: Path) -> None:
    path = tmp_path / "batch.yaml"
    path.write_text("name: n\nmodels: [m]\ninput: {uri: rows.csv}\n")
    assert read_spec(path)["input"]["uri"] == str(tmp_path / "rows.csv")
    path.write_text("name: n\nmodels: [m]\ninput: rows.csv\n")
    assert read_spec(path)["input"] == str(tmp_path / "rows.csv")


@pytest.mark.parametrize(
    ("text", "said"), [("a: [", "not YAML"), ("- a\n- b\n", "holds no batch spec"), ("", "holds no batch spec")]
)
def test_a_bad_spec_file_is_named(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "batch.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=said) as caught:
        read_spec(path)
    assert str(path) in caught.value.message


def test_a_missing_spec_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read .*nothing\.yaml"):
        read_spec(tmp_path / "nothing.yaml")


def test_a_model_is_a_folder_a_path_or_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    assert model_folder("here") == Path("here")
    assert model_folder("digits-cnn") is None
    assert model_folder("digits-cnn@1") is None
    assert model_folder(f"ipfs://{CID}") is None
    for missing in ("./digits", "models/digits", "~/no/such/folder"):
        with pytest.raises(InputError, match="no such model folder"):
            model_folder(missing)
