from __future__ import annotations

import asyncio
import errno
import json

import pytest

from dim_pipelines.cli.console import Exit, Screen, explain
from dim_pipelines.errors import (
    Cancelled,
    ConfigurationError,
    ContentUnavailable,
    DimError,
    InputError,
    NoFeasibleNode,
)


@pytest.mark.parametrize(
    ("error", "code", "exit"),
    [
        (InputError("row 3 is bad"), "input", Exit.FAILED),
        (ConfigurationError("no such option"), "configuration", Exit.USAGE),
        (ContentUnavailable(), "content_unavailable", Exit.FAILED),
        (NoFeasibleNode(reasons={"a": "no device"}), "no_feasible_node", Exit.FAILED),
        (Cancelled(), "cancelled", Exit.INTERRUPTED),
        (KeyboardInterrupt(), "cancelled", Exit.INTERRUPTED),
        (asyncio.CancelledError(), "cancelled", Exit.INTERRUPTED),
        (ExceptionGroup("two", [InputError("first"), InputError("second")]), "input", Exit.FAILED),
        (OSError(errno.ENOSPC, "No space left on device", "/x"), "content_unavailable", Exit.FAILED),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), "system", Exit.FAILED),
        (ModuleNotFoundError("No module named 'torch'", name="torch"), "configuration", Exit.USAGE),
        (ZeroDivisionError("division by zero"), "internal", Exit.FAILED),
    ],
)
def test_an_error_is_one_line_with_a_code_and_an_exit_code(error: BaseException, code: str, exit: Exit) -> None:
    trouble = explain(error)
    assert (trouble.code, trouble.exit) == (code, exit)
    assert trouble.message and "\n" not in trouble.message and "\n" not in trouble.hint


def test_a_full_disk_says_so_and_where() -> None:
    trouble = explain(OSError(errno.ENOSPC, "No space left on device", "/data/store/dim.db"))
    assert trouble.message == "the disk is full: /data/store/dim.db"
    assert trouble.hint


def test_an_unknown_error_is_called_a_mistake_of_dim_and_asks_for_debug() -> None:
    trouble = explain(RuntimeError("line one\nline two"))
    assert trouble.message == "a mistake in DIM itself: RuntimeError: line one line two"
    assert "--debug" in trouble.hint


def test_an_error_is_a_line_and_a_hint_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    code = Screen().trouble(InputError("no such column: ag", hint="did you mean 'age'?"))
    out, err = capsys.readouterr()
    assert (code, out, err) == (Exit.FAILED, "", "error: no such column: ag\nhint: did you mean 'age'?\n")


def test_with_json_an_error_is_also_the_one_object_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    Screen(as_json=True).trouble(InputError("bad", hint="mend it"))
    out, err = capsys.readouterr()
    assert json.loads(out) == {"error": {"code": "input", "message": "bad", "hint": "mend it"}}
    assert err == "error: bad\nhint: mend it\n"


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        raise DimError("deep down")
    except DimError as error:
        Screen(debug=True).trouble(error)
    assert "Traceback" in capsys.readouterr().err


def test_with_json_nothing_but_the_object_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    screen = Screen(as_json=True)
    screen.say("reading")
    with screen.progress("computing") as bar:
        bar.update(1, 2, "rows")
    screen.result({"rows": 2}, "two rows")
    out, err = capsys.readouterr()
    assert json.loads(out) == {"rows": 2}
    assert err == ""


def test_without_a_terminal_progress_is_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("dim_pipelines.cli.console.time.monotonic", lambda: now[0])
    with Screen().progress("computing") as bar:
        bar.update(1, 9)
        now[0] += 11
        bar.update(2, 9, "rows")
        bar.update(3, 9, "rows")
    assert capsys.readouterr().err == "computing: 2/9 rows\n"


def test_what_is_waited_for_is_said_at_once_and_not_all_the_time(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("dim_pipelines.cli.console.time.monotonic", lambda: now[0])
    with Screen().progress("computing") as bar:
        for why in ("waits: a is down", "waits: a is down", "waits: b is down", "", "waits: a is down"):
            bar.wait(why)
        now[0] += 11
        bar.wait("waits: b is down")
    first, lasting = "computing: waits: a is down\n", "computing: waits: b is down\n"
    assert capsys.readouterr().err == first + first + lasting


def test_a_table_has_its_columns_and_rows(capsys: pytest.CaptureFixture[str]) -> None:
    Screen().table(("name", "version"), [("digits", "1")], {})
    out = capsys.readouterr().out
    assert "name" in out and "digits" in out
