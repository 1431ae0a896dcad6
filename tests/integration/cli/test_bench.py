"""The benchmarks run and print every figure; their goals are for a quiet machine, not for the test suite."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def bench(*arguments: str, home: Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "dim_pipelines.cli", "bench", *arguments, "--json"],
        env={**os.environ, "DIM_HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    value: dict[str, Any] = json.loads(done.stdout)
    return value


def test_dispatch_gives_both_rates_beside_their_goals(tmp_path: Path) -> None:
    record = bench("dispatch", "--tasks", "200", "--rounds", "1", home=tmp_path / "home")
    assert record["descriptors_per_s"] > 0
    assert record["echo_per_s"] > 0
    assert (record["descriptors_goal"], record["echo_goal"]) == (10_000, 800)
    assert not (tmp_path / "home").exists(), "a benchmark works in a home of its own"


def test_pipeline_gives_the_ratio_and_where_the_time_went(tmp_path: Path) -> None:
    record = bench(
        "pipeline", "--rows", "32", "--rounds", "1", "--layers", "1", "--ipfs", "embedded", home=tmp_path / "home"
    )
    figures = record["stores"]["embedded"]
    assert figures["raw_s"] > 0
    assert figures["pipeline_s"] >= figures["dispatch_s"] > 0
    assert 0 < figures["ratio"] <= figures["ratio_of_dispatch"]
    assert 0 <= figures["others"] <= 1


def test_discovery_gives_each_part_that_was_asked_for_beside_its_goals(tmp_path: Path) -> None:
    parts = ("--parts", "records,table,blocks", "--nodes", "60", "--rounds", "1")
    record = bench("discovery", *parts, home=tmp_path / "home")
    assert record["records"]["verified_per_s"] > 0
    assert record["table"]["tick_s"] >= record["table"]["ranking_s"] > 0
    assert record["blocks"]["tls_mb_per_s"] > 0
    assert record["blocks"]["tls_cpu_ms_per_task"] > 0
    assert len(record["goals"]) == 4
    assert "links" not in record
    assert not (tmp_path / "home").exists(), "a benchmark works in homes of its own"
