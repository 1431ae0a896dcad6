from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from dim_pipelines.cli import batch
from dim_pipelines.cli.batch import describe
from dim_pipelines.cli.console import Screen
from dim_pipelines.cli.here import check_output
from dim_pipelines.errors import ConfigurationError, InputError


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
