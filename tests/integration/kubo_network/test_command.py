"""`dim kubo`: in the foreground until it is told to end, and seen by the other commands of its home."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil

DIM = [sys.executable, "-m", "dim_pipelines.cli"]


def dim(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "DIM_HOME": str(home)}
    return subprocess.run([*DIM, *arguments], env=environment, capture_output=True, text=True, timeout=100, check=False)


def test_it_runs_until_it_is_told_to_end(ipfs_binary: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    missing = dim(home, "kubo", "status", "--json")
    assert missing.returncode == 2
    assert "no Kubo runs" in missing.stderr + missing.stdout
    environment = {**os.environ, "DIM_HOME": str(home)}
    running = subprocess.Popen([*DIM, "kubo", "start", "--json"], env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert running.stdout is not None
        said: dict[str, Any] = json.loads(running.stdout.readline())
        found = json.loads(dim(home, "kubo", "status", "--json").stdout)
        assert found["address"] == said["address"]
        assert found["swarm"] == said["swarm"]
        assert found["peers"] == []
        second = dim(home, "kubo", "start")
        assert second.returncode == 2
        assert "another process keeps the Kubo" in second.stderr
        running.send_signal(signal.SIGTERM)
        assert running.wait(60) == 0
        assert not psutil.pid_exists(said["pid"])
    finally:
        if running.poll() is None:
            running.kill()
            running.wait()
        if running.stdout is not None:
            running.stdout.close()


def test_a_peer_that_is_none_is_one_line(tmp_path: Path) -> None:
    shown = dim(tmp_path, "kubo", "start", "--peer", "somewhere")
    assert shown.returncode == 2
    assert "not the address of a Kubo of the swarm" in shown.stderr
