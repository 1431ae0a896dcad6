"""The engine `echo`: outputs are its inputs. For tests and measurements of everything around a model.

Output tensor i is input tensor i, under the output's name. The parameter `sleep_ms` (0 to 60,000) makes each
micro-batch take that long.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt

from dim_pipelines.domain.model import ModelDescription
from dim_pipelines.errors import EngineFailed
from dim_pipelines.node.engines.engine import Tensors
from dim_pipelines.node.engines.memory import ProcessMemory

VERSION = 1


class EchoModel:
    """Gives back what it gets."""

    def __init__(self, description: ModelDescription) -> None:
        """Pair the names of outputs with those of inputs.

        Raises:
            EngineFailed: the description has more outputs than inputs.
        """
        names = [tensor.name for tensor in description.inputs]
        outputs = [tensor.name for tensor in description.outputs]
        if len(outputs) > len(names):
            raise EngineFailed(f"an echo model has no more outputs ({len(outputs)}) than inputs ({len(names)})")
        self._pairs = list(zip(outputs, names, strict=False))

    def run(self, inputs: Tensors, parameters: Mapping[str, Any]) -> dict[str, npt.NDArray[Any]]:
        """Give the inputs under the outputs' names."""
        pause = parameters.get("sleep_ms", 0)
        if pause:
            time.sleep(min(60_000.0, float(pause)) / 1000)
        return {output: inputs[name] for output, name in self._pairs}

    def close(self) -> None:
        """Hold nothing."""


class EchoEngine(ProcessMemory):
    """Needs no files and no library; its numerics are the same on every machine."""

    name = "echo"

    def numerics(self) -> str:
        """Name the class: copies are exact everywhere."""
        return f"echo-{VERSION}"

    def load(self, folder: Path, description: ModelDescription) -> EchoModel:
        """Make a model from the description alone."""
        return EchoModel(description)
