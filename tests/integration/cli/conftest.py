"""A home with two signed models, and `dim` as a person calls it, in this process."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dim_pipelines.cli import main


@dataclass(frozen=True)
class Said:
    """What a command said: its exit code, its standard output and its standard error."""

    code: int
    out: str
    err: str

    @property
    def record(self) -> dict[str, Any]:
        """The one object of `--json`."""
        value = json.loads(self.out)
        assert isinstance(value, dict)
        return value


Dim = Callable[..., Said]


@pytest.fixture(scope="session")
def dim_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The DIM_HOME of these tests."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(autouse=True)
def _home(dim_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIM_HOME", str(dim_home))
    for name in ("DIM_IPFS", "DIM_NODES"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def dim(capsys: pytest.CaptureFixture[str]) -> Iterator[Dim]:
    """Call `dim`."""

    def call(*arguments: object) -> Said:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        shown = capsys.readouterr()
        return Said(code, shown.out, shown.err)

    yield call


def _write_model(folder: Path, **changes: Any) -> Path:
    description = {
        "v": 1,
        "name": "echo-a",
        "version": "1",
        "engine": "echo",
        "inputs": [{"name": "a", "datatype": "FP64", "shape": []}],
        "outputs": [{"name": "a", "datatype": "FP64", "shape": []}],
        "licence": "Apache-2.0",
    } | changes
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dim-model.json").write_text(json.dumps(description))
    return folder


@pytest.fixture(scope="session")
def write_model() -> Callable[..., Path]:
    """Give `write_model(folder, **changes)`: an echo model of a column `a` of floats, its description changed."""
    return _write_model


@pytest.fixture(scope="session")
def echo_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model that gives back its column `a`."""
    return _write_model(tmp_path_factory.mktemp("echo-a"))


@pytest.fixture(scope="session")
def image_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model that gives back the pixels of its images."""
    tensor = {"datatype": "UINT8", "shape": [1, 8, 8]}
    decode = {"op": "decode_image", "mode": "L", "size": [8, 8]}
    return _write_model(
        tmp_path_factory.mktemp("echo-image"),
        name="echo-image",
        inputs=[{"name": "pixels", "column": "image", "preprocess": [decode], **tensor}],
        outputs=[{"name": "pixels", **tensor}],
    )
