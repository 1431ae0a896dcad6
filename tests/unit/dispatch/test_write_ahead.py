"""The write-ahead file."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dim_pipelines.dispatch.write_ahead import WriteAhead, read_write_ahead, remove_files
from dim_pipelines.domain.cid import RAW, Cid
from dim_pipelines.domain.events import ShardDone, Usage
from dim_pipelines.errors import ConfigurationError

WORK = Cid.of(RAW, b"work")
OTHER = Cid.of(RAW, b"other")


def outcome(shard: int) -> ShardDone:
    return ShardDone(shard, Cid.of(RAW, b"%d" % shard), shard + 1, f"nöde {shard % 3}", Usage(1, 2, 3, 4, 5))


def test_outcomes_come_back_in_order(tmp_path: Path) -> None:
    file = WriteAhead(tmp_path / "made", "b1", 1, WORK)
    file.append([outcome(0), outcome(1)])
    file.append([outcome(2)])
    outcomes, files = read_write_ahead(tmp_path / "made", "b1", WORK)
    assert outcomes == [outcome(0), outcome(1), outcome(2)]
    assert len(files) == 1
    file.close()


@settings(max_examples=60)
@given(cut=st.integers(0, 400), damage=st.booleans())
def test_a_torn_end_costs_the_torn_outcomes_only(
    tmp_path_factory: pytest.TempPathFactory, cut: int, damage: bool
) -> None:
    folder = tmp_path_factory.mktemp("wal")
    file = WriteAhead(folder, "b1", 1, WORK)
    file.append([outcome(shard) for shard in range(3)])
    file.close()
    (path,) = folder.iterdir()
    data = path.read_bytes()
    kept = max(0, len(data) - cut)
    path.write_bytes(data[:kept] + (b"\0garbage" if damage else b""))
    outcomes, _ = read_write_ahead(folder, "b1", WORK)
    assert outcomes == [outcome(shard) for shard in range(len(outcomes))]
    whole = data[:kept].count(b"\n") - 1
    assert len(outcomes) in (whole, whole + 1) or (whole < 0 and not outcomes)


def test_another_work_batch_or_epoch(tmp_path: Path) -> None:
    for batch, epoch, work, shard in (
        ("b1", 1, WORK, 0),
        ("b1", 2, WORK, 1),
        ("b1.2", 1, WORK, 2),
        ("b1", 3, OTHER, 3),
    ):
        file = WriteAhead(tmp_path, batch, epoch, work)
        file.append([outcome(shard)])
        file.close()
    outcomes, files = read_write_ahead(tmp_path, "b1", WORK)
    assert outcomes == [outcome(0), outcome(1)]
    assert len(files) == 3
    remove_files(files)
    assert read_write_ahead(tmp_path, "b1", WORK) == ([], [])
    assert read_write_ahead(tmp_path, "b1.2", WORK)[0] == [outcome(2)]
    assert read_write_ahead(tmp_path / "nowhere", "b1", WORK) == ([], [])


def test_a_part_goes_when_its_segment_stands(tmp_path: Path) -> None:
    file = WriteAhead(tmp_path, "b1", 1, WORK)
    file.append([outcome(0)])
    part = file.rotate()
    file.append([outcome(1)])
    assert read_write_ahead(tmp_path, "b1", WORK)[0] == [outcome(0), outcome(1)]
    file.drop(part)
    assert read_write_ahead(tmp_path, "b1", WORK)[0] == [outcome(1)]
    file.drop(file.rotate())
    file.close()
    assert list(tmp_path.iterdir()) == []


def test_lines_of_another_dim_are_passed_over(tmp_path: Path) -> None:
    file = WriteAhead(tmp_path, "b1", 1, WORK)
    file.append([outcome(0)])
    file.close()
    (path,) = tmp_path.iterdir()
    from dim_pipelines.dispatch.write_ahead import _line

    path.write_bytes(path.read_bytes() + _line([1, "no cid", 1, "a", 1, 1, 1, 1, 1]) + _line({"x": 1}))
    assert read_write_ahead(tmp_path, "b1", WORK)[0] == [outcome(0)]


def test_a_folder_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="cannot write"):
        WriteAhead(tmp_path / "file" / "folder", "b1", 1, WORK).append([outcome(0)])
