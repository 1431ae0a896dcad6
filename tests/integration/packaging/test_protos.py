"""The generated code is what the .proto files give: nobody edits it, and nobody forgets to make it again."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
FOLDER = "dim_pipelines/wire/v1"


def test_generated_code_is_fresh(tmp_path: Path) -> None:
    subprocess.run([ROOT / "deployment" / "scripts" / "protos", tmp_path], check=True, capture_output=True)
    made = {path.name: path.read_text() for path in (tmp_path / FOLDER).iterdir()}
    committed = {path.name: path.read_text() for path in (ROOT / FOLDER).glob("*_pb2*.py*")}
    assert made.keys() == committed.keys()
    stale = [name for name, text in made.items() if committed[name] != text]
    assert not stale, f"run make protos: {stale}"
