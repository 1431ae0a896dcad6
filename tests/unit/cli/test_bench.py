from __future__ import annotations

import subprocess
import sys
import time

import numpy as np
import pytest

from dim_pipelines.cli.bench import Figure
from dim_pipelines.cli.bench_encoder import LENGTH, TOKENS, token_rows, token_table
from dim_pipelines.cli.bench_load import LoadMeter


@pytest.mark.parametrize(
    ("value", "goal", "line"),
    [
        (0.95, 0.9, "x: 0.950 (goal 0.90: reached)"),
        (0.5, 0.9, "x: 0.500 (goal 0.90: MISSED)"),
        (23456.7, 10000.0, "x: 23,457 (goal 10,000: reached)"),
    ],
)
def test_a_figure_says_whether_its_goal_was_reached(value: float, goal: float, line: str) -> None:
    assert Figure("x", value, goal).line() == line


def test_a_figure_may_be_better_the_less_it_is() -> None:
    assert Figure("x", 0.5, 1.0, at_most=True).line() == "x: 0.500 (goal at most 1.00: reached)"
    assert not Figure("x", 1.5, 1.0, at_most=True).reached


def test_the_same_rows_go_to_both_sides() -> None:
    rows = token_rows(40)
    assert rows.shape == (40, LENGTH)
    assert 0 <= rows.min() <= rows.max() < TOKENS
    assert np.array_equal(rows, token_rows(40))
    assert np.array_equal(np.array(token_table(40).column("tokens").to_pylist()), rows)


def test_the_meter_tells_own_work_and_that_of_children_from_others() -> None:
    meter = LoadMeter()
    subprocess.run([sys.executable, "-c", "sum(range(3_000_000))"], check=True)
    deadline = time.process_time() + 0.05
    while time.process_time() < deadline:
        sum(range(1000))
    load = meter.look()
    assert 0.05 <= load.own_cpu_s <= load.seconds * 64
    assert 0.0 <= load.others <= 1.0
