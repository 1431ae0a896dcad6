"""Ctrl-C, SIGTERM, killed nodes and newer runs: nothing is left running, nothing half-written, and a resume goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from dim_pipelines.database.engine import open_database
from dim_pipelines.identity.keys import format_public_key, load_or_create_key, public_bytes
from dim_pipelines.node.process import NodeProcess
from dim_pipelines.orchestrator.batches import Batches, BatchRow
from dim_pipelines.settings import Home

ROWS = 3000


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A DIM_HOME of its own."""
    monkeypatch.setenv("DIM_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def command(tmp_path: Path, echo_model: Path) -> list[str]:
    """The command of a batch of one-row shards, which takes some seconds."""
    rows = tmp_path / "rows.csv"
    rows.write_text("a\n" + "".join(f"{row}\n" for row in range(ROWS)))
    (tmp_path / "out").mkdir()
    return ["infer", "--model", str(echo_model), "--input", str(rows), "--output", str(tmp_path / "out" / "o.csv"),
            "--shard-rows", "1", "--batch-rows", "1", "--json"]  # fmt: skip


@pytest.fixture
def start() -> Iterator[Callable[[list[str]], subprocess.Popen[str]]]:
    """Start `dim` as a terminal does, leading a process group; ended with the test."""
    started: list[subprocess.Popen[str]] = []

    def call(arguments: list[str]) -> subprocess.Popen[str]:
        program = [sys.executable, "-m", "dim_pipelines.cli", *arguments]
        process = subprocess.Popen(
            program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        started.append(process)
        return process

    yield call
    for process in started:
        process.kill()
        process.communicate()


def until(condition: Callable[[], Any], process: subprocess.Popen[str], timeout_s: float = 90.0) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return value


def newest(home: Path) -> BatchRow | None:
    if not (home / "dim.db").exists():
        return None
    rows = Batches(open_database(Home.at(home).database_url)).list(limit=1)
    return rows[0] if rows else None


def has_begun(home: Path) -> bool:
    row = newest(home)
    return row is not None and row.state == "running" and row.head is not None


def processes_of(home: Path) -> list[psutil.Process]:
    """The processes that name the home on their command line, and live."""
    found = []
    for process in psutil.process_iter():
        try:
            if str(home) in " ".join(process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def ends(process: subprocess.Popen[str], timeout_s: float = 60.0) -> tuple[int, dict[str, Any], str]:
    out, err = process.communicate(timeout=timeout_s)
    return process.returncode, json.loads(out), err


MOMENTS: dict[str, Callable[[Path], bool]] = {
    "before anything is there": lambda home: home.exists(),
    "while the node starts": lambda home: (home / "nodes" / "local-1" / "logs").exists(),
    "while it computes": has_begun,
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_ctrl_c_leaves_no_process_and_no_file(
    moment: str, home: Path, command: list[str], start: Callable[[list[str]], subprocess.Popen[str]], tmp_path: Path
) -> None:
    process = start(command)
    until(lambda: MOMENTS[moment](home), process)
    os.kill(process.pid, signal.SIGINT)
    code, record, err = ends(process)
    assert code == 130, err
    assert record["error"]["code"] == "cancelled"
    assert "Traceback" not in err
    assert processes_of(home) == []
    assert list((tmp_path / "out").iterdir()) == []
    row = newest(home)
    assert row is None or row.state == "cancelled"


def test_a_cancelled_batch_goes_on_where_it_was(
    home: Path, command: list[str], start: Callable[[list[str]], subprocess.Popen[str]], tmp_path: Path
) -> None:
    user = format_public_key(public_bytes(load_or_create_key(Home.at(home).user_key)))
    with NodeProcess.start(tmp_path / "node", name="one", trust=[user], engines=["echo"]) as node:
        nodes = ["--nodes", node.address]
        process = start([*command, *nodes])
        until(lambda: has_begun(home), process)
        process.terminate()
        assert ends(process)[0] == 130
        row = newest(home)
        assert row is not None and row.state == "cancelled"

        code, resumed, err = ends(start(["resume", row.id, *nodes, "--json"]), 60)
        assert code == 0, err
        assert 0 < resumed["resumed_shards"] < ROWS
        assert (tmp_path / "out" / "o.csv").read_text().count("\n") >= ROWS

        # A run that a newer one overtakes ends; what it then says is that of the newer one.
        process = start([*command, *nodes])
        until(lambda: has_begun(home) and newest(home) != row, process)
        second = newest(home)
        assert second is not None
        Batches(open_database(Home.at(home).database_url)).take_epoch(second.id, "a newer run")
        code, record, err = ends(process)
        assert (code, record["error"]["code"]) == (1, "stale_epoch"), err
        code, again, err = ends(start(["resume", second.id, "--here", *nodes, "--json"]), 60)
        assert code == 0, err
        assert again["result_cid"] == resumed["result_cid"]


def test_a_killed_node_is_one_clear_line(
    home: Path, command: list[str], start: Callable[[list[str]], subprocess.Popen[str]], tmp_path: Path
) -> None:
    process = start(command)
    until(lambda: has_begun(home), process)
    [announced] = home.glob("nodes/*/node/node.json")
    os.kill(json.loads(announced.read_text())["pid"], signal.SIGKILL)
    code, record, err = ends(process, 60)
    assert code == 1 and "here-1" in record["error"]["message"], err
    assert err.count("\n") <= 3
    assert list((tmp_path / "out").iterdir()) == []
    assert processes_of(home) == []
