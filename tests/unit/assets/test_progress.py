"""Progress lines: the newest only, at most one per interval, and the last one always."""

from __future__ import annotations

import threading

import pytest

from dim_pipelines.assets.progress import ProgressLog, line
from dim_pipelines.dispatch.head import Progress


def _at(done: int) -> Progress:
    return Progress(done, 10, done * 4, 40, 0, {"a": done})


def test_a_line_says_how_far_the_batch_is() -> None:
    progress = Progress(5, 10, 2_000, 4_000, 3, {"b": 2, "a": 3})

    assert line(progress, 2.0) == (
        "5 of 10 shards (50 %), 2,000 of 4,000 rows, 1,000 rows/s, 3 retries; shards per node: a 3, b 2"
    )


def test_an_empty_batch_is_complete() -> None:
    assert line(Progress(0, 0, 0, 0, 0), 0.0) == "0 of 0 shards (100 %), 0 of 0 rows, 0 rows/s"


def test_a_batch_that_waits_says_for_what() -> None:
    assert line(Progress(0, 2, 0, 8, 0, waits="waits for a node: a: it is down"), 1.0) == (
        "0 of 2 shards (0 %), 0 of 8 rows, 0 rows/s; waits for a node: a: it is down"
    )


def test_many_updates_are_one_line_and_the_last_one_is_written() -> None:
    lines: list[str] = []
    with ProgressLog(lines.append, interval_s=60) as log:
        for done in range(11):
            log.update(_at(done))

    assert len(lines) == 1
    assert lines[0].startswith("10 of 10 shards")


def test_a_line_is_written_while_the_batch_runs_and_not_twice() -> None:
    lines: list[str] = []
    written = threading.Event()

    def write(text: str) -> None:
        lines.append(text)
        written.set()

    with ProgressLog(write, interval_s=0.01) as log:
        log.update(_at(3))
        assert written.wait(5)

    assert [text.split(" ")[0] for text in lines] == ["3"]


def test_a_batch_that_failed_writes_no_last_line() -> None:
    lines: list[str] = []
    with pytest.raises(RuntimeError), ProgressLog(lines.append, interval_s=60) as log:
        log.update(_at(1))
        raise RuntimeError

    assert lines == []
