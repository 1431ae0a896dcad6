"""What an owner says to a node that does not run: the rules are a file, and the answers are one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dim_pipelines.cli import main
from dim_pipelines.cli.node import _listeners
from dim_pipelines.node.controls import Controls
from dim_pipelines.node.controls_file import controls_path, load_controls
from dim_pipelines.settings import Home
from dim_pipelines.testing.networks import MadeNetwork


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home.at(tmp_path / "home")


class Shell:
    """Runs `dim node …` for one home."""

    def __init__(self, home: Home, capsys: pytest.CaptureFixture[str]) -> None:
        self._home, self._capsys = home, capsys

    def __call__(self, *words: str, code: int = 0) -> dict[str, Any]:
        assert main(["node", *words, "--home", str(self._home.root), "--json"]) == code
        return dict(json.loads(self._capsys.readouterr().out))


@pytest.fixture
def node(home: Home, capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(home, capsys)


def test_rules_are_set_one_by_one_and_taken_back(home: Home, node: Shell) -> None:
    node("set", "hours", "mon-fri 18:00-08:00", "sat-sun", "00:00-24:00", code=2)
    node("set", "hours", "mon-fri", "18:00-08:00,", "sat-sun", "00:00-24:00")
    node("set", "owners", "ann", "bob")
    node("set", "max-sessions", "2")
    assert node("set", "labels", "gpu=a100")["controls"] == {
        "hours": "mon-fri 18:00-08:00, sat-sun 00:00-24:00",
        "max_sessions": 2,
        "owners": ["ann", "bob"],
        "labels": {"gpu": "a100"},
    }
    node("pause")
    kept = load_controls(controls_path(home))
    assert kept.paused and kept.owners == ("ann", "bob") and kept.labels == {"gpu": "a100"}
    node("resume")
    for setting in ("hours", "owners", "max_sessions", "labels"):
        node("set", setting)
    assert load_controls(controls_path(home)) == Controls()


def test_a_wrong_word_changes_nothing_and_says_what_is_right(home: Home, node: Shell) -> None:
    node("set", "price", "5")
    for words in (("price", "much"), ("labels", "gpu"), ("hours", "late"), ("max_sessions", "100")):
        assert node("set", *words, code=2)["error"]["code"] == "configuration"
    wrong = node("set", "hour", "22:00-07:00", code=2)["error"]
    assert wrong["hint"] == "did you mean hours?"
    assert load_controls(controls_path(home)) == Controls(price=5)


def test_a_node_that_does_not_run_is_said_in_one_line(node: Shell) -> None:
    node("pause")
    said = node("status", code=1)
    assert said["running"] is False and "no node daemon runs" in said["reason"] and said["controls"] == {"paused": True}
    for words in (("drain",), ("benchmark",)):
        error = node(*words, code=1)["error"]
        assert error["code"] == "node_unreachable" and error["hint"] == "dim node start"


def test_a_stale_or_damaged_announcement_is_no_traceback(home: Home, node: Shell) -> None:
    home.node.mkdir(parents=True)
    for text in ("{", "[]", '{"address": "unix:/nowhere/node.sock"}'):
        (home.node / "node.json").write_text(text)
        assert node("status", code=1)["running"] is False


def test_listen_means_others_in_a_network_and_this_machine_without_one(home: Home, tmp_path: Path) -> None:
    assert _listeners(home, "127.0.0.1:7") == ("127.0.0.1:7", "") and _listeners(home, "") == ("", "")
    MadeNetwork(tmp_path / "network").join("n", "node", home=home)
    assert _listeners(home, "0.0.0.0:7") == ("", "0.0.0.0:7")
    assert _listeners(home, "unix:/tmp/x") == ("unix:/tmp/x", "")


def test_a_home_without_a_network_has_nowhere_to_advertise(node: Shell) -> None:
    error = node("start", "--advertise", "10.0.0.1:7", code=2)["error"]
    assert "no node of a network" in error["message"] and "dim network join" in error["hint"]
