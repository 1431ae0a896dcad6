"""Measured speeds: the arithmetic, and the file."""

from __future__ import annotations

import math
import statistics
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dim_pipelines.domain.advertisement import Speed
from dim_pipelines.domain.cid import RAW, Cid
from dim_pipelines.node.speeds import MAX_SPEEDS, SpeedBook, Timing, combine

MODEL = Cid.of(RAW, b"model")


def timing(rows: int, *seconds: float) -> Timing:
    made = Timing(rows)
    for each in seconds:
        made.add(each)
    return made


def speed(name: str, rate: int = 1000, numerics: str = "n") -> Speed:
    return Speed(
        model=Cid.of(RAW, name.encode()), numerics=numerics, rows_per_1000_s=rate, spread_per_mille=10, samples=5
    )


def test_a_rate_is_rows_over_the_mean_time_and_its_spread_is_students() -> None:
    made = timing(64, 0.1, 0.2, 0.3)
    assert made.rate == pytest.approx(320) and made.samples == 3
    # t(0.975, 2 degrees of freedom) = 4.303; deviation 0.1, three samples, mean 0.2
    assert made.spread == pytest.approx(min(1.0, 4.30 * 0.1 / math.sqrt(3) / 0.2))
    assert timing(64, 0.2, 0.2).spread == 0.0
    assert timing(64).rate == 0.0 and timing(64).spread == 1.0 and timing(64, 0.1).spread == 1.0


@given(st.lists(st.floats(1e-4, 10.0), min_size=2, max_size=80))
def test_the_running_mean_and_deviation_are_those_of_all_times(seconds: list[float]) -> None:
    made = timing(1, *seconds)
    assert made.mean == pytest.approx(statistics.fmean(seconds))
    assert math.sqrt(made.squares / (len(seconds) - 1)) == pytest.approx(statistics.stdev(seconds), abs=1e-9)
    assert 0.0 <= made.spread <= 1.0


def test_devices_add_up() -> None:
    both = combine(MODEL, "n", [timing(10, 0.1, 0.1), timing(10, 0.2, 0.2)])
    assert both == Speed(model=MODEL, numerics="n", rows_per_1000_s=150_000, spread_per_mille=0, samples=4)
    assert combine(MODEL, "n", [Timing(10)]).rows_per_1000_s == 0
    one, two = timing(10, 0.1, 0.11, 0.12), timing(10, 0.2, 0.22, 0.24)
    joined = combine(MODEL, "n", [one, two])
    assert joined.spread_per_mille < 1000 * max(one.spread, two.spread)


def test_the_book_keeps_the_newest_of_each_and_forgets_the_oldest(tmp_path: Path) -> None:
    path = tmp_path / "node" / "speeds.json"
    book = SpeedBook(path)
    assert book.speeds == ()
    book.keep(speed("a", 1))
    book.keep(speed("b", 2))
    book.keep(speed("a", 3))
    book.keep(speed("a", 4, "other"))
    assert [(each.rows_per_1000_s, each.numerics) for each in book.speeds] == [(2, "n"), (3, "n"), (4, "other")]
    assert SpeedBook(path).speeds == book.speeds
    for number in range(MAX_SPEEDS + 3):
        book.keep(speed(f"m{number}"))
    assert len(book.speeds) == MAX_SPEEDS == len(SpeedBook(path).speeds)


@pytest.mark.parametrize("text", ["", "{", "[1]", '[{"model": "x"}]', '{"a": 1}', "null"])
def test_a_damaged_book_is_an_empty_one(tmp_path: Path, text: str) -> None:
    path = tmp_path / "speeds.json"
    path.write_text(text)
    assert SpeedBook(path).speeds == ()
    book = SpeedBook(path)
    book.keep(speed("a"))
    assert SpeedBook(path).speeds == (speed("a"),)
