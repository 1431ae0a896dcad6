"""The protocol of an engine: loads a model from a folder and runs one micro-batch at a time.

Everything around it (decoding, preprocessing, the grid, padding, masking, postprocessing, encoding) is
`shard_run`'s and the same for all engines.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy.typing as npt

from dim_pipelines.domain.model import ModelDescription

Tensors = Mapping[str, npt.NDArray[Any]]
"""Tensor name → array whose first dimension is the rows of the micro-batch."""


class LoadedModel(Protocol):
    """A model that is ready to run."""

    def run(self, inputs: Tensors, parameters: Mapping[str, Any]) -> dict[str, npt.NDArray[Any]]:
        """Run one micro-batch of fixed size.

        Args:
            inputs: the description's input tensors, `batch_rows` rows each.
            parameters: what the batch's user gave with the model.

        Returns:
            The description's output tensors by name, in order, as many rows each.

        Raises:
            EngineFailed: the model failed, or gave something else than its description says.
        """
        ...

    def close(self) -> None:
        """Give back the device memory."""
        ...


class Engine(Protocol):
    """Runs models of one kind on one device."""

    name: str

    def numerics(self) -> str:
        """Name the numerics base class of this machine: equal strings promise equal bits (see DESIGN, section 5)."""
        ...

    def load(self, folder: Path, description: ModelDescription) -> LoadedModel:
        """Load a materialised and verified package.

        Raises:
            EngineFailed: the files cannot be loaded.
        """
        ...

    def resident_bytes(self) -> int:
        """Give the device memory in use now."""
        ...

    def peak_bytes(self) -> int:
        """Give the highest device memory in use since the last call."""
        ...
