"""The documentation is true: links lead somewhere, references are complete, commands exist."""

from __future__ import annotations

import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dim_pipelines.content.steps import POSTPROCESS, PREPROCESS
from dim_pipelines.domain import dataset, events, grant, roster, work
from dim_pipelines.domain.batch import BatchSpec, InputSpec, OutputSpec, Requirements
from dim_pipelines.domain.format import Format
from dim_pipelines.domain.model import ModelDescription

ROOT = Path(__file__).resolve().parents[3]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
FORMATS = [
    value
    for module in (dataset, events, grant, roster, work)
    for value in vars(module).values()
    if isinstance(value, type) and issubclass(value, Format) and value is not Format
]


def page_id(path: Path) -> str:
    return str(path.relative_to(ROOT))


def rows(page: str) -> dict[str, str]:
    """Give the rows of a page's tables: the word in the first column → the rest."""
    text = (ROOT / "docs" / "reference" / page).read_text(encoding="utf-8")
    return {match[1]: match[2] for match in re.finditer(r"^\| `([^`]+)` \|(.*)$", text, re.MULTILINE)}


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        place = (page.parent / path).resolve() if path else page
        assert place.exists(), f"{page_id(page)}: {target}"
        if anchor and place.suffix == ".md":
            titles = re.findall(r"^#+ (.*)$", place.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", title).lower().replace(" ", "-") for title in titles}, target


@pytest.mark.parametrize("page", PAGES[1:], ids=page_id)
def test_every_page_is_reached_from_the_index(page: Path) -> None:
    index = "".join((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/index.md"))
    assert page.name in index or "decisions" in page.parts, f"{page_id(page)} is not linked"


@pytest.mark.parametrize("kind", FORMATS, ids=lambda kind: kind.kind_name)
def test_every_format_is_described_with_all_its_fields(kind: type[Format]) -> None:
    described = rows("formats.md")[kind.kind_name]
    missing = [name for name in kind.model_fields if name not in ("v", "kind") and f"`{name}`" not in described]
    assert not missing


@pytest.mark.parametrize("part", [BatchSpec, InputSpec, OutputSpec, Requirements])
def test_every_key_of_the_spec_is_described(part: Any) -> None:
    assert set(part.model_fields) <= set(rows("batch-spec.md"))


def test_every_key_and_step_of_a_model_package_is_described() -> None:
    described = rows("model-package.md")
    assert set(ModelDescription.model_fields) <= set(described)
    for name, kind in {**PREPROCESS, **POSTPROCESS}.items():
        settings = set(kind.model_fields) - {"op", "input", "output"}
        assert not [setting for setting in settings if f"`{setting}`" not in described[name]], name


def commands() -> Iterator[tuple[str, list[str]]]:
    """Give every `dim …` line of every code block, with the page it stands on."""
    for page in PAGES:
        for block in re.findall(r"```(?:sh|bash|console)\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line.removeprefix("$ "), comments=True)
                if words[:1] in (["dim"], [".venv/bin/dim"]):
                    yield page_id(page), words[1:]


@pytest.mark.parametrize(("page", "words"), list(commands()), ids=lambda value: " ".join(value) if value else "")
def test_every_command_exists_and_takes_the_options_shown(page: str, words: list[str]) -> None:
    command, rest = find_command(words)
    known = {option for parameter in command.params for option in parameter.opts + parameter.secondary_opts}
    shown = [word.partition("=")[0] for word in rest if word.startswith("-")]
    assert not [option for option in shown if option not in known], f"{page}: dim {' '.join(words)}"


def find_command(words: list[str]) -> tuple[Any, list[str]]:
    """Walk the command tree along the words; gives the command and what is left for it."""
    import typer.main

    from dim_pipelines.cli.application import app

    command: Any = typer.main.get_command(app)
    rest = list(words)
    while getattr(command, "commands", None):
        if command.invoke_without_command and (not rest or rest[0].startswith("-")):
            break  # a group that does something by itself: `dim nodes`
        assert rest, f"dim {' '.join(words)} names no command"
        assert rest[0] in command.commands, f"dim {' '.join(words)}: there is no {rest[0]!r}"
        command = command.commands[rest.pop(0)]
    return command, rest


def test_the_command_reference_is_what_the_commands_say() -> None:
    spec = importlib.util.spec_from_file_location("cli_reference", ROOT / "deployment/scripts/cli_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.PAGE.read_text(encoding="utf-8") == module.page(), "run make docs"
