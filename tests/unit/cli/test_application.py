from __future__ import annotations

import json
import resource
import subprocess
import sys

import pytest

from dim_pipelines.cli import main


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    for command in ("infer", "submit", "resume", "up", "demo", "node", "model", "gc"):
        assert command in out


@pytest.mark.parametrize(
    "arguments",
    [
        ["infer", "--help"],
        ["submit", "--help"],
        ["resume", "--help"],
        ["up", "--help"],
        ["gc", "--help"],
        ["demo", "digits", "--help"],
        ["node", "start", "--help"],
        ["nodes", "--help"],
        ["nodes", "explain", "--help"],
        *(["model", verb, "--help"] for verb in ("add", "list", "show", "verify")),
    ],
)
def test_every_command_has_help_and_takes_json(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    assert "--json" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["infer"], "missing --model, --input, --output"),
        (["infer", "--model"], "requires an argument"),
        (["infer", "--shard-rows", "0"], "--shard-rows"),
        (["infer", "--model", "m", "--input", "i", "--output", "o.txt"], "neither in .parquet nor in .csv"),
        (["submit"], "nothing to submit"),
        (["submit", "a.yaml", "--model", "m"], "not both"),
        (["frobnicate"], "frobnicate"),
        (["up", "--nodes", "0"], "--nodes"),
    ],
)
def test_a_wrong_command_line_is_one_line_a_hint_and_code_2(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    first, *rest = err.splitlines()
    assert first.startswith("error: ") and said in first
    assert len(rest) == 1 and rest[0].startswith("hint: ")


def test_usage_errors_are_json_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["infer", "--batch-rows", "many", "--json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["code"] == "usage" and error["hint"] == "dim infer --help"


def test_no_arguments_show_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    main([])
    shown = capsys.readouterr()
    assert "infer" in shown.out + shown.err
    assert "error" not in shown.err


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("dim ")


def test_help_imports_nothing_heavy_and_is_quick() -> None:
    heavy = "{'torch', 'dagster', 'pyarrow', 'grpc', 'sqlalchemy', 'pandas', 'numpy', 'alembic', 'cryptography'}"
    script = (
        "import sys; from dim_pipelines.cli import main; main(['--help']); "
        f"found = {heavy} & set(sys.modules); print(sorted(found), file=sys.stderr); sys.exit(bool(found))"
    )
    begun = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    # processor time, which no neighbour takes part in: 0.3 s; the bound only catches a heavy import
    assert ended.ru_utime + ended.ru_stime - begun.ru_utime - begun.ru_stime < 4.0
