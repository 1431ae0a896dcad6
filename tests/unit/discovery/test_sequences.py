"""The file of sequences."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dim_pipelines.discovery.sequences import SequenceFile
from dim_pipelines.errors import ContentUnavailable


def test_it_is_on_the_disk_before_it_is_used(tmp_path: Path) -> None:
    path = tmp_path / "network" / "sequences.json"
    assert SequenceFile(path, lambda: 1_000).next("a") == 1_000
    assert json.loads(path.read_text()) == {"a": 1_000}
    assert SequenceFile(path, lambda: 1_000).next("a") == 1_001
    assert SequenceFile(path, lambda: 5).next("a") == 1_002
    assert SequenceFile(path, lambda: 5).next("b") == 5
    assert SequenceFile(path, lambda: 2_000).next("a") == 2_000


@given(st.lists(st.integers(0, 1 << 50), min_size=1, max_size=8))
def test_whatever_the_clock_does_they_grow(tmp_path_factory: pytest.TempPathFactory, clock: list[int]) -> None:
    path = tmp_path_factory.mktemp("sequences") / "file"
    given_out = [SequenceFile(path, lambda now=now: now).next("a") for now in clock]  # type: ignore[misc]
    assert given_out == sorted(set(given_out))


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff", b'{"a": "x"}', b'{"a": true}', b"null"])
def test_a_damaged_file_goes_on_from_the_clock(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    assert SequenceFile(path, lambda: 77).next("a") == 77
    assert SequenceFile(path, lambda: 77).next("a") == 78


def test_what_cannot_be_kept_is_not_given(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ContentUnavailable, match="cannot write"):
        SequenceFile(tmp_path / "file" / "sequences", lambda: 1).next("a")
