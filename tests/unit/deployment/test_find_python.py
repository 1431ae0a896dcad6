from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SCRIPTS = Path(__file__).parents[3] / "deployment/scripts"


def find(folder: Path, *modules: str, **environment: str) -> subprocess.CompletedProcess[str]:
    bash = "/usr/bin:/bin"  # for bash itself; the interpreters come from the folder, which is first
    return subprocess.run(
        ["/bin/bash", str(SCRIPTS / "find_python"), *modules],
        env={"PATH": f"{folder}:{bash}"} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def interpreter(path: Path, *, works: bool) -> None:
    path.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n' if works else "#!/bin/sh\nexit 1\n")
    path.chmod(0o755)


def fake(folder: Path, *working: str) -> None:
    for name in ("python3", "python3.13", "python3.12", "python3.11"):
        interpreter(folder / name, works=name in working)


def test_an_interpreter_under_another_name_is_found(tmp_path: Path) -> None:
    fake(tmp_path, "python3.11")
    found = find(tmp_path, "venv", "ensurepip")
    assert (found.returncode, found.stdout) == (0, "python3.11\n")
    fake(tmp_path, "python3", "python3.11")
    assert find(tmp_path).stdout == "python3\n"


def test_the_named_one_goes_first_and_modules_are_asked_for(tmp_path: Path) -> None:
    fake(tmp_path, "python3.12")
    interpreter(tmp_path / "mine", works=True)
    assert find(tmp_path, PYTHON=str(tmp_path / "mine")).stdout == f"{tmp_path / 'mine'}\n"
    assert find(tmp_path, PYTHON="missing").stdout == "python3.12\n"
    none = find(tmp_path, "no_such_module")
    assert none.returncode == 1 and "no Python 3.11 or newer with the modules no_such_module was found" in none.stderr


def test_every_script_that_needs_an_interpreter_finds_it_so() -> None:
    makefile = (SCRIPTS.parents[1] / "Makefile").read_text()
    assert "deployment/scripts/find_python" in makefile and "@python3 " not in makefile
    assert "find_python venv ensurepip" in (SCRIPTS / "setup").read_text()
    assert os.access(SCRIPTS / "find_python", os.X_OK)
