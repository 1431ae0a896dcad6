"""What `dim doctor` says of a home: broken things are named with what to do, and looking changes nothing."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path

import pytest

from dim_pipelines.cli import doctor_home, doctor_network, main
from dim_pipelines.cli.doctor_findings import Finding, ask_all
from dim_pipelines.cli.doctor_network import judge_clock
from dim_pipelines.cli.doctor_node import NodeVisit
from dim_pipelines.database.engine import open_database
from dim_pipelines.errors import ConfigurationError
from dim_pipelines.identity.keys import load_or_create_key
from dim_pipelines.settings import Home


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home.at(tmp_path)


def test_a_new_home_is_not_broken_and_stays_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["doctor", "--home", str(tmp_path / "none"), "--json"])
    record = json.loads(capsys.readouterr().out)
    assert code == 0, record
    assert record["broken"] == 0
    assert {finding["name"] for finding in record["findings"]} >= {"home", "keys", "memory", "database"}
    assert not (tmp_path / "none").exists(), "looking makes nothing"


def test_people_get_a_line_for_each_question_and_what_to_do(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    load_or_create_key(home.node_key)
    home.node_key.chmod(0o640)
    assert main(["doctor", "--home", str(home.root)]) == 1
    shown = capsys.readouterr().out
    assert "XX  keys" in shown
    assert f"→ chmod 600 {home.node_key}" in shown


def test_keys_are_named_by_what_members_call_them(home: Home) -> None:
    load_or_create_key(home.node_key)
    found = doctor_home.check_keys("keys", home)
    assert found.verdict == "good"
    assert found.details[0].startswith("node k51")
    assert not home.user_key.exists(), "looking makes no key"
    home.node_key.write_text("no key")
    home.node_key.chmod(0o600)
    with pytest.raises(ConfigurationError):
        doctor_home.check_keys("keys", home)


@pytest.mark.parametrize(("free", "verdict"), [(100 * 2**30, "good"), (2 * 2**30, "warning"), (2**20, "bad")], ids=str)
def test_a_full_disk_is_told(home: Home, free: int, verdict: str, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type(shutil.disk_usage(home.root))
    monkeypatch.setattr(doctor_home.shutil, "disk_usage", lambda path: usage(free, 0, free))
    assert doctor_home.check_home("home", home).verdict == verdict


def test_free_memory_is_what_the_kernel_says_is_available(tmp_path: Path) -> None:
    source = tmp_path / "meminfo"
    source.write_text("MemTotal:       24 kB\nMemFree:  1 kB\nMemAvailable:   2048 kB\n")
    assert doctor_home.free_memory(source) == 2048 * 1024
    assert doctor_home.free_memory(tmp_path / "none") is None


def test_a_database_that_is_none_is_told(home: Home) -> None:
    (home.root / "dim.db").write_bytes(b"this is no database, and it is longer than a header of one would be" * 20)
    with pytest.raises(ConfigurationError):
        doctor_home.check_database("database", home)


def test_a_database_without_nodes_answers(home: Home) -> None:
    open_database(home.database_url).close()
    assert doctor_home.check_database("database", home).verdict == "good"


@pytest.mark.parametrize(
    ("skew_ms", "verdict"),
    [(0, "good"), (4_000, "good"), (-20_000, "warning"), (20_000, "warning"), (600_000, "bad"), (-600_000, "bad")],
)
def test_a_clock_that_is_off_is_told(skew_ms: int, verdict: str) -> None:
    found = judge_clock(skew_ms)
    assert found.verdict == verdict
    assert bool(found.hint) is (verdict != "good")


async def test_a_home_in_no_network_says_how_to_join_one(home: Home) -> None:
    found = await ask_all(doctor_network.questions(home))
    assert [(each.name, each.verdict) for each in found] == [("network", "unknown")]
    assert "join" in found[0].hint


async def test_a_daemon_that_was_killed_is_told_from_one_that_never_ran(home: Home, tmp_path: Path) -> None:
    asked = {"daemon": NodeVisit(home, "").daemon}
    assert [(each.verdict, each.hint) for each in await ask_all(asked)] == [("unknown", "dim node start")]
    home.node.mkdir()
    (home.node / "node.json").write_text(json.dumps({"address": f"unix:{tmp_path / 'nobody.sock'}"}))
    [found] = await ask_all({"daemon": NodeVisit(home, "").daemon})
    assert found.verdict == "bad"
    assert "dim node start" in found.hint
    (home.node / "node.json").write_text("{")
    [found] = await ask_all({"daemon": NodeVisit(home, "").daemon})
    assert found.verdict == "bad"


async def test_a_question_that_fails_or_hangs_is_an_answer_and_spoils_no_other() -> None:
    async def good() -> Finding:
        return Finding("good", "good", "fine")

    async def fails() -> Finding:
        raise ConfigurationError("it is wrong", hint="mend it")

    async def hangs() -> Finding:
        await asyncio.Event().wait()
        raise AssertionError

    found = await ask_all({"hangs": hangs, "fails": fails, "good": good}, timeout_s=0.05)
    assert [(finding.name, finding.verdict, finding.hint) for finding in found] == [
        ("hangs", "bad", ""),
        ("fails", "bad", "mend it"),
        ("good", "good", ""),
    ]
