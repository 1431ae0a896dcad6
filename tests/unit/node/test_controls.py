"""An owner's rules: read, changed, enforced; and the file that holds them."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dim_pipelines.errors import ConfigurationError, Forbidden, NodeBusy, NodeRefused
from dim_pipelines.node.controls import MAX_SESSIONS, Controls, Hours, change_controls, read_controls
from dim_pipelines.node.controls_file import ControlsFile, load_controls, save_controls

MONDAY = datetime(2026, 11, 23)


def at(day: int, clock: str) -> datetime:
    """Give a time of a week; 0 is Monday."""
    hour, minute = map(int, clock.split(":"))
    return MONDAY + timedelta(days=day, hours=hour, minutes=minute)


@pytest.mark.parametrize(
    ("hours", "open_", "closed"),
    [
        ("", [(0, "0:00"), (6, "23:59")], []),
        ("always", [(3, "12:00")], []),
        ("09:00-17:00", [(0, "9:00"), (6, "16:59")], [(0, "8:59"), (0, "17:00")]),
        ("22:00-07:00", [(0, "22:00"), (1, "6:59"), (0, "0:00"), (6, "23:00")], [(0, "7:00"), (0, "21:59")]),
        ("sun 22:00-07:00", [(6, "22:00"), (0, "6:59")], [(6, "21:59"), (0, "7:00"), (1, "6:00"), (6, "6:00")]),
        ("mon-fri 18:00-08:00, sat-sun 00:00-24:00", [(5, "7:00"), (5, "12:00"), (6, "23:59"), (0, "18:00")],
         [(0, "7:00"), (0, "12:00"), (4, "17:59")]),
        ("Sat-Mon  20:00 - 21:00", [(5, "20:30"), (6, "20:30"), (0, "20:30")], [(1, "20:30"), (4, "20:30")]),
    ],
)  # fmt: skip
def test_hours_are_the_owners_local_week(
    hours: str, open_: list[tuple[int, str]], closed: list[tuple[int, str]]
) -> None:
    parsed = Hours.parse(hours)
    assert [each for each in open_ if not parsed.open_at(at(*each))] == []
    assert [each for each in closed if parsed.open_at(at(*each))] == []
    assert Hours.parse(parsed.text) == parsed


@pytest.mark.parametrize(
    "text", ["9-17", "25:00-26:00", "10:60-11:00", "24:30-25:00", "10:00-10:00", "day 10:00-11:00", "10:00-11:00,", "x"]
)
def test_what_is_no_hours_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Hours.parse(text)
    assert caught.value.hint and "\n" not in caught.value.message


@given(st.integers(0, 1439), st.integers(1, 1440), st.integers(0, 7 * 1440 - 1))
def test_a_daily_span_is_open_for_its_length_and_no_longer(begin: int, end: int, minute: int) -> None:
    if begin == end:
        return
    text = f"{begin // 60:02}:{begin % 60:02}-{end // 60:02}:{end % 60:02}"
    length = end - begin if end > begin else end + 1440 - begin
    inside = (minute - begin) % 1440 < length
    assert Hours.parse(text).open_at(MONDAY + timedelta(minutes=minute)) is inside


def test_sessions_are_admitted_by_the_rules() -> None:
    noon = at(0, "12:00")
    Controls().admit("anybody", MAX_SESSIONS - 1, noon)
    with pytest.raises(NodeBusy, match="paused"):
        Controls(paused=True).admit("a", 0, noon)
    with pytest.raises(NodeBusy, match="22:00-07:00"):
        Controls(hours=Hours.parse("22:00-07:00")).admit("a", 0, noon)
    Controls(hours=Hours.parse("22:00-07:00")).admit("a", 0, at(0, "23:00"))
    with pytest.raises(NodeBusy, match="2 sessions are open"):
        Controls(max_sessions=2).admit("a", 2, noon)
    with pytest.raises(Forbidden, match="works for ann, not for bob"):
        Controls(owners=("ann",)).admit("bob", 0, noon)
    Controls(owners=("ann",)).admit("ann", 0, noon)
    with pytest.raises(NodeRefused, match="GPL"):
        Controls(licences=("MIT",)).admit_licence("m", "GPL-3.0-only")
    Controls(licences=("MIT",)).admit_licence("m", "MIT OR GPL-3.0-only")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "map"),
        ({"pausd": True}, "pausd"),
        ({"paused": "yes"}, "true or false"),
        ({"hours": 9}, "not hours"),
        ({"max_sessions": 0}, "from 1 to 64"),
        ({"max_sessions": 65}, "from 1 to 64"),
        ({"max_sessions": True}, "from 1 to 64"),
        ({"price": -1}, "from 0"),
        ({"owners": "ann"}, "list"),
        ({"owners": ["a" * 121]}, "list"),
        ({"licences": [f"L{number}" for number in range(33)]}, "at most 32"),
        ({"labels": ["gpu"]}, "map"),
        ({"labels": {"gpu": ["a"]}}, "short text"),
        ({"labels": {"gpu": "x" * 121}}, "120"),
    ],
)
def test_controls_that_are_none_are_refused(value: object, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        read_controls(value)


def test_an_unknown_setting_names_the_nearest() -> None:
    with pytest.raises(ConfigurationError) as caught:
        change_controls(Controls(), "licenses", ["MIT"])
    assert caught.value.hint == "did you mean licences?"


def test_words_of_a_command_line_change_one_setting_and_none_bring_its_default_back() -> None:
    controls = Controls()
    for key, words in {
        "hours": ["mon-fri", "18:00-08:00"],
        "max-sessions": ["4"],
        "owners": ["ann", "bob", "ann"],
        "licences": ["MIT"],
        "price": ["250"],
        "labels": ["gpu=a100", "place=lyon=3"],
        "paused": ["true"],
    }.items():
        controls = change_controls(controls, key, words)
    assert controls.owners == ("ann", "bob") and controls.labels == {"gpu": "a100", "place": "lyon=3"}
    assert controls.max_sessions == 4 and controls.price == 250 and controls.paused
    assert read_controls(controls.to_plain()) == controls
    for key in ("hours", "max_sessions", "owners", "licences", "price", "labels", "paused"):
        controls = change_controls(controls, key, [])
    assert controls == Controls() and controls.to_plain() == {}
    for key, words in {"labels": ["gpu"], "price": ["1", "2"], "max_sessions": ["many"]}.items():
        with pytest.raises(ConfigurationError):
            change_controls(controls, key, words)


def test_the_file_is_written_whole_and_read_again_when_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "node" / "controls.yaml"
    file = ControlsFile(path)
    assert file.current() == Controls()
    save_controls(path, Controls(paused=True, labels={"gpu": "a100"}))
    assert file.current() == Controls(paused=True, labels={"gpu": "a100"}) and not file.error
    assert path.stat().st_mode & 0o777 == 0o600 and [each.name for each in path.parent.iterdir()] == ["controls.yaml"]
    path.write_text("hours: 22:00-07:00\nlabels: {gpu: a100, cores: 8, fast: true}\n")
    assert file.current().hours.text == "22:00-07:00"
    assert file.current().labels == {"gpu": "a100", "cores": "8", "fast": "true"}
    path.unlink()
    assert file.current() == Controls()


@pytest.mark.parametrize("text", ["paused: maybe", "nothing: 1", "- a", "{", "\0", "x: " + "y" * 70_000])
def test_a_wrong_file_leaves_the_rules_before_in_force_and_says_so(tmp_path: Path, text: str) -> None:
    path = tmp_path / "controls.yaml"
    save_controls(path, Controls(owners=("ann",)))
    file = ControlsFile(path)
    path.write_text(text)
    assert file.current().owners == ("ann",) and str(path) in file.error and "\n" not in file.error
    with pytest.raises(ConfigurationError):
        ControlsFile(path)
    with pytest.raises(ConfigurationError):
        load_controls(path)
    save_controls(path, Controls(owners=("bob",)))
    assert file.current().owners == ("bob",) and not file.error


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(ConfigurationError, match="cannot write"):
        save_controls(blocked / "controls.yaml", Controls())
    assert [each.name for each in tmp_path.iterdir()] == ["file"]
