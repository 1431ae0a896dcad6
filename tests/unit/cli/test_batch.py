from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from dim_pipelines.cli import batch
from dim_pipelines.cli.batch import RowErrors, _model_folder, _plain_spec, describe, read_spec
from dim_pipelines.cli.console import Screen
from dim_pipelines.cli.here import check_output
from dim_pipelines.domain.batch import BatchSpec
from dim_pipelines.domain.cid import RAW, Cid
from dim_pipelines.errors import ConfigurationError, InputError

CID = str(Cid.of(RAW, b"rows"))


def test_options_become_a_spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plain = _plain_spec("m", "rows.csv", Path("out.csv"), "a, b,", "id", 32, 8, RowErrors.DEAD_LETTER)
    spec = BatchSpec.read(plain)
    assert spec.name == "rows"
    assert spec.input.uri == str(tmp_path / "rows.csv")
    assert spec.input.columns == ("a", "b")
    assert (spec.input.id_column, spec.shard_rows, spec.batch_rows) == ("id", 32, 8)
    assert spec.on_row_error.policy == "dead_letter"
    assert spec.output.format == "csv"


def test_what_was_left_out_stays_out() -> None:
    spec = BatchSpec.read(_plain_spec("m", CID, Path("out.parquet"), None, None, None, None, RowErrors.FAIL))
    assert spec.input.uri == CID
    assert spec.input.columns is None and spec.shard_rows is None and spec.batch_rows is None


@pytest.mark.parametrize("uri", [CID, f"ipfs://{CID}", f"/ipfs/{CID}"])
def test_a_cid_is_no_path(uri: str) -> None:
    assert _plain_spec("m", uri, None, None, None, None, None, RowErrors.FAIL)["input"]["uri"] == uri


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
    assert _model_folder("here") == Path("here")
    assert _model_folder("digits-cnn") is None
    assert _model_folder("digits-cnn@1") is None
    assert _model_folder(f"ipfs://{CID}") is None
    for missing in ("./digits", "models/digits", "~/no/such/folder"):
        with pytest.raises(InputError, match="no such model folder"):
            _model_folder(missing)


def test_an_output_that_cannot_be_written_is_refused_before_anything_starts(tmp_path: Path) -> None:
    assert check_output(tmp_path / "new" / "out.parquet") == tmp_path / "new" / "out.parquet"
    assert list(tmp_path.rglob("out*")) == []
    with pytest.raises(ConfigurationError, match="is a folder"):
        check_output(tmp_path)
    with pytest.raises(ConfigurationError, match="cannot be written"):
        check_output(Path("/proc/self/out.parquet"))


def test_a_summary_names_dead_rows_and_resumed_shards() -> None:
    record = {
        "batch": "b", "result_cid": "bafy", "rows": 10, "dead_rows": 2, "shards": 4, "resumed_shards": 1,
        "rows_per_s": 5.0, "seconds": 2.0, "nodes": {"a": 3, "b": 1}, "output": "/o.csv",
    }  # fmt: skip
    text = describe(record)
    assert "2 bad rows set aside" in text and "4 (1 from before): a 3, b 1" in text and "bafy" in text


class Rows:
    """A row that a run beats, or that nobody writes any more."""

    def __init__(self, updated_ms: list[int], state: str = "running") -> None:
        self._updated = updated_ms
        self._state = state

    def get(self, batch: str, *, owner: str) -> SimpleNamespace:
        return row(self._updated.pop(0) if len(self._updated) > 1 else self._updated[0], self._state)


def row(updated_ms: int, state: str = "running") -> SimpleNamespace:
    return SimpleNamespace(id="b", state=state, holder="a run", updated_ms=updated_ms)


@pytest.fixture
def now_ms(monkeypatch: pytest.MonkeyPatch) -> int:
    """A clock that only the sleeps move."""
    clock = [1000.0]

    async def sleep(seconds: float) -> None:
        clock[0] += seconds

    monkeypatch.setattr("time.time", lambda: clock[0])
    monkeypatch.setattr(batch.asyncio, "sleep", sleep)
    return 1_000_000


async def test_a_run_that_still_writes_its_row_is_not_overtaken(now_ms: int) -> None:
    with pytest.raises(InputError, match=r"batch b is running \(a run\)"):
        await batch._outwait(row(now_ms), Rows([now_ms, now_ms + 5000]), Screen(as_json=True))  # type: ignore[arg-type]


@pytest.mark.parametrize("state", ["running", "failed"])
async def test_a_run_that_lost_its_heartbeat_or_ended_is(now_ms: int, state: str) -> None:
    await batch._outwait(row(now_ms), Rows([now_ms], state), Screen(as_json=True))  # type: ignore[arg-type]
    await batch._outwait(row(now_ms - 20_000), Rows([now_ms]), Screen(as_json=True))  # type: ignore[arg-type]
