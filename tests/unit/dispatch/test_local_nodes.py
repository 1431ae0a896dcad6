"""Local nodes: those that are alive, and no ghosts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from dim_pipelines.dispatch.local_nodes import LocalNode, find_local_nodes
from dim_pipelines.settings import Home


def _write(folder: Path, name: str, pid: int) -> None:
    folder.mkdir(parents=True)
    (folder / "node.json").write_text(json.dumps({"name": name, "address": f"unix:{folder}/s", "pid": pid, "key": "k"}))


def test_live_nodes_of_the_home_and_below_it_are_found_by_name(tmp_path: Path) -> None:
    home = Home.at(tmp_path)
    _write(home.nodes / "b" / "node", "b", os.getpid())
    _write(home.nodes / "a" / "node", "a", os.getpid())
    _write(home.node, "own", os.getpid())

    assert [node.name for node in find_local_nodes(home)] == ["a", "b", "own"]
    assert find_local_nodes(home)[0] == LocalNode("a", f"unix:{home.nodes}/a/node/s", os.getpid())


def test_dead_and_zombie_nodes_are_passed_over(tmp_path: Path) -> None:
    home = Home.at(tmp_path)
    with subprocess.Popen([sys.executable, "-S", "-c", "pass"], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.read() == b""  # its end of the pipe is closed: it has ended, and nobody has waited for it
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        _write(home.nodes / "zombie" / "node", "zombie", child.pid)

        assert find_local_nodes(home) == []
    assert find_local_nodes(home) == []


def test_a_torn_file_is_no_node(tmp_path: Path) -> None:
    home = Home.at(tmp_path)
    home.node.mkdir(parents=True)
    (home.node / "node.json").write_text('{"name": "a"')

    assert find_local_nodes(home) == []


def test_a_home_without_nodes_has_none(tmp_path: Path) -> None:
    assert find_local_nodes(Home.at(tmp_path / "absent")) == []
