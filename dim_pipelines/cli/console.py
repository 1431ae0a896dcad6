"""What every command shares: what is printed where, progress bars, and errors as one line, a hint and an exit code.

Results go to stdout, everything else to stderr; with `--json` stdout holds one object and nothing else.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated, Any, Final

import typer

from dim_pipelines.errors import Cancelled, ConfigurationError, ContentUnavailable, DimError


class Exit(IntEnum):
    """Exit codes of `dim` (DESIGN, "Errors")."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    DEAD_ROWS = 3
    INTERRUPTED = 130


JsonFlag = Annotated[
    bool, typer.Option("--json", help="Print one JSON object at the end, and nothing else, on standard output.")
]
DebugFlag = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]

_PLAIN_PROGRESS_S: Final = 10.0
"""How often progress is written where there is no terminal, in seconds."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """An error as a person sees it: a short code, one line, what to do, and the exit code."""

    code: str
    message: str
    hint: str
    exit: Exit


def explain(error: BaseException) -> Trouble:
    """Say in one line what went wrong; an error that DIM does not know is named as its own mistake."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, (KeyboardInterrupt, asyncio.CancelledError, Cancelled)):
        return Trouble("cancelled", "interrupted", "", Exit.INTERRUPTED)
    if isinstance(error, DimError):
        code = Exit.USAGE if isinstance(error, ConfigurationError) else Exit.FAILED
        return Trouble(error.code, _one_line(error.message), _one_line(error.hint), code)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = f": {error.filename}" if error.filename else ""
        hint = "free some space, then type the same command again; nothing half-written is left"
        return Trouble(ContentUnavailable.code, f"the disk is full{where}", hint, Exit.FAILED)
    if isinstance(error, OSError) and error.filename is not None:
        return Trouble("system", f"{error.filename}: {error.strerror}", "", Exit.FAILED)
    if isinstance(error, ModuleNotFoundError) and not (error.name or "").startswith("dim_pipelines"):
        hint = "pip install 'dim-pipelines[all]', or the one extra this command needs"
        return Trouble("configuration", f"the package {error.name} is not installed", hint, Exit.USAGE)
    described = _one_line(f"{type(error).__name__}: {error}").rstrip(": ")
    hint = "type the command again with --debug and report what it shows"
    return Trouble("internal", f"a mistake in DIM itself: {described}", hint, Exit.FAILED)


def _one_line(text: str) -> str:
    return " ".join(text.split())


class Screen:
    """Where one command prints."""

    def __init__(self, as_json: bool = False, debug: bool = False) -> None:
        """Make the screen of a command.

        Args:
            as_json: the command was given `--json`.
            debug: errors show their traceback.
        """
        self.as_json = as_json
        self.debug = debug
        self._quiet = False

    def say(self, text: str = "") -> None:
        """Print a line that people read while they wait: on stderr, and not at all with `--json`."""
        if not self.as_json:
            print(text, file=sys.stderr, flush=True)

    def warn(self, text: str) -> None:
        """Print a line on stderr, with `--json` too."""
        print(f"warning: {text}", file=sys.stderr, flush=True)

    def result(self, record: Mapping[str, Any], text: str) -> None:
        """Print what the command was asked for: the record with `--json`, else the text."""
        print(json.dumps(dict(record), ensure_ascii=False) if self.as_json else text, flush=True)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[object]], record: Mapping[str, Any]) -> None:
        """Print rows as a table, or the record with `--json`."""
        if self.as_json:
            self.result(record, "")
            return
        # Not a rich.Table: that folds a CID over two lines, and nobody can copy it then.
        cells = [[str(cell) for cell in row] for row in (columns, *rows)]
        widths = [max(len(line[column]) for line in cells) for column in range(len(columns))]
        for line in cells:
            print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())

    def trouble(self, error: BaseException) -> Exit:
        """Print an error on stderr (and with `--json` as the object on stdout) and give its exit code."""
        trouble = explain(error)
        if self.debug:
            import traceback

            traceback.print_exception(error, file=sys.stderr)
        self.report(trouble)
        return trouble.exit

    def report(self, trouble: Trouble) -> None:
        """Print an error that was already explained."""
        if self.as_json:
            shown = {"code": trouble.code, "message": trouble.message, "hint": trouble.hint}
            print(json.dumps({"error": shown}, ensure_ascii=False), flush=True)
        print(f"error: {trouble.message}" if trouble.code != "cancelled" else trouble.message, file=sys.stderr)
        if trouble.hint:
            print(f"hint: {trouble.hint}", file=sys.stderr)

    @contextmanager
    def progress(self, what: str) -> Iterator[Bar]:
        """Show a bar on stderr while the block runs: a live one on a terminal, now and then a line elsewhere."""
        if self.as_json or not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
            yield Bar(what, self)
            return
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        live = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        with live:
            yield _LiveBar(what, self, live)


class Bar:
    """A progress bar where there is no terminal: a plain line every ten seconds, nothing with `--json`."""

    def __init__(self, what: str, screen: Screen) -> None:
        """Make the bar; `what` says what is being done."""
        self.what = what
        self.screen = screen
        self._next = time.monotonic() + _PLAIN_PROGRESS_S
        self._why, self._say_again = "", 0.0

    def wait(self, why: str) -> None:
        """Say at once why nothing goes on; empty: it does. The same is not said twice, and nothing all the time."""
        now = time.monotonic()
        if why and why != self._why and now >= self._say_again:
            self._why, self._say_again = why, now + _PLAIN_PROGRESS_S
            self._next = now + _PLAIN_PROGRESS_S
            self._print(f"{self.what}: {why}")
        elif not why and self._why:
            self._why, self._say_again = "", 0.0

    def _print(self, text: str) -> None:
        self.screen.say(text)

    def update(self, done: int, total: int | None = None, note: str = "") -> None:
        """Say how far it is: `done` of `total` (None: not known), and a few words beside it."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _PLAIN_PROGRESS_S
            self.screen.say(f"{self.what}: {_count(done, total)} {note}".rstrip())


class _LiveBar(Bar):
    def __init__(self, what: str, screen: Screen, live: Any) -> None:
        super().__init__(what, screen)
        self._live = live
        self._task = live.add_task(what, total=None, note="")

    def _print(self, text: str) -> None:
        self._live.console.print(text, markup=False, highlight=False)  # above the bar

    def update(self, done: int, total: int | None = None, note: str = "") -> None:
        self._live.update(self._task, completed=done, total=total, note=f"{_count(done, total)} {note}".strip())


def _count(done: int, total: int | None) -> str:
    """Write `3/10`, or `3` where the total is not known, or nothing where nothing is counted."""
    return f"{done:,}/{total:,}" if total is not None else f"{done:,}" if done else ""
