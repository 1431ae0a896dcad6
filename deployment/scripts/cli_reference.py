#!/usr/bin/env python3
"""Writes docs/reference/cli.md from the command tree itself: run by `make docs`, compared by the tests."""

from __future__ import annotations

import enum
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main

from dim_pipelines.cli.application import app

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "cli.md"
COMMON = ("--json", "--debug", "--help")

HEAD = """# Command line

This page is written by `make docs` from the commands themselves.

Every command takes `--json` (one object on standard output at the end, nothing else there; an error is
`{"error": {code, message, hint}}`), `--debug` (the traceback of an error) and `--help`. What people read while they
wait is on standard error: progress, warnings, and errors as one line and a hint.

| exit code | meaning |
| --- | --- |
| 0 | done |
| 1 | failed |
| 2 | wrong usage or configuration |
| 3 | done, with rows set aside |
| 130 | interrupted |

| variable | meaning |
| --- | --- |
| `DIM_HOME` | the folder of this installation's state; a place of the platform when unset |
| `DIM_DATABASE_URL` | SQLAlchemy URL of DIM's tables; SQLite in the home when unset |
| `DIM_IPFS` | what `--ipfs` is when left out |

For a batch, `--json` gives `{batch, result_cid, dataset_cid, provenance_cid, rows, dead_rows, shards,
resumed_shards, rows_per_s, seconds, nodes: {name: shards}, output}`; `demo digits` adds `accuracy`.
"""


def commands(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    """Give every command below `command` that is not hidden, with its full name."""
    if getattr(command, "commands", None):
        for child, value in command.commands.items():
            yield from commands(f"{name} {child}", value)
    elif not command.hidden:
        yield name, command


def section(name: str, command: Any) -> str:
    """Describe one command."""
    arguments = [parameter for parameter in command.params if parameter.param_type_name == "argument"]
    options = [parameter for parameter in command.params if parameter.param_type_name == "option"]
    usage = " ".join([name, *(argument_name(argument) for argument in arguments)])
    lines = [f"## `{usage}`", "", inspect.cleandoc(command.help or ""), ""]
    rows = [(f"`{argument_name(argument)}`", getattr(argument, "help", None) or "") for argument in arguments]
    for option in options:
        longest = max(option.opts, key=len)
        if longest in COMMON:
            continue
        names = longest + "".join(f"/{other}" for other in option.secondary_opts)
        kind = "" if option.is_flag else f" {metavar(option)}"
        rows.append((f"`{names}{kind}`", f"{option.help or ''}{default(option)}"))
    if rows:
        lines += ["| argument | meaning |", "| --- | --- |"]
        lines += [f"| {cell(shown)} | {cell(text)} |" for shown, text in rows]
        lines.append("")
    return "\n".join(lines)


def cell(text: str) -> str:
    """Write a text so that it stays in its cell of a table."""
    return " ".join(text.split()).replace("|", r"\|")


def argument_name(argument: Any) -> str:
    """Name an argument as its usage line does."""
    shown = str(argument.metavar or argument.name).upper() if argument.metavar is None else str(argument.metavar)
    return shown if argument.required else f"[{shown}]"


def metavar(option: Any) -> str:
    """Say what an option takes."""
    annotation = option.type_descriptor.annotation
    if option.metavar:
        shown = option.metavar
    elif isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        shown = "|".join(str(choice.value) for choice in annotation)
    else:
        shown = "N" if annotation in (int, float) else "TEXT"
    return str(shown)


def default(option: Any) -> str:
    """Say what an option is when it is left out, where that is not said by its help."""
    value = option.default
    if isinstance(option.show_default, str):
        return f" When left out: {option.show_default}."
    if (option.is_flag and not option.secondary_opts) or value is None or value == "" or callable(value):
        return ""
    if isinstance(value, bool):
        value = option.opts[0] if value else option.secondary_opts[0]
    if isinstance(value, (list, tuple)):
        return ""
    return f" When left out: {getattr(value, 'value', value)}."


def page() -> str:
    """Give the whole page."""
    found = commands("dim", typer.main.get_command(app))
    return "\n".join([HEAD, *(section(name, command) for name, command in found)]).rstrip() + "\n"


if __name__ == "__main__":
    if PAGE.exists() and PAGE.read_text(encoding="utf-8") == page():
        sys.exit()
    PAGE.write_text(page(), encoding="utf-8")
    print(f"{PAGE.name}: written")
