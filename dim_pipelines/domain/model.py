"""A model package's description, the file `dim-model.json`.

A package is a folder of standard files beside this one; the CID of the folder is the model's identity.
Datatypes are those of the Open Inference Protocol (https://github.com/kserve/open-inference-protocol,
"Tensor Data Types"). Shapes are per row: the batch dimension is left out.
"""

from __future__ import annotations

import json
from typing import Any, Final, Literal

from pydantic import ConfigDict, Field, ValidationError

from dim_pipelines.domain.format import Value
from dim_pipelines.errors import InputError

DESCRIPTION_FILE: Final = "dim-model.json"

Datatype = Literal[
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64", "BYTES"
]


class Step(Value):
    """One step of pre- or post-processing: `op` and its own settings (see `content/transforms`)."""

    op: str


class ModelInput(Value):
    """One input tensor of the model.

    Attributes:
        name: the tensor's name.
        datatype: the tensor's element type, after preprocessing.
        shape: the tensor's shape for one row; -1 where any size is allowed.
        column: the dataset column it is made from; the tensor's name when left out.
        preprocess: steps from the column's value to the tensor, in order.
    """

    name: str
    datatype: Datatype
    shape: tuple[int, ...]
    column: str | None = None
    preprocess: tuple[Step, ...] = ()

    @property
    def source(self) -> str:
        """The dataset column this tensor is made from."""
        return self.column or self.name


class ModelOutput(Value):
    """One output tensor of the model, in the order in which the program returns them."""

    name: str
    datatype: Datatype
    shape: tuple[int, ...]


class ModelDescription(Value):
    """What `dim-model.json` says.

    Attributes:
        engine: the engine that runs the package: `torch` or `echo`.
        files: role → file name in the package; the torch engine wants `program` (a `.pt2`).
        postprocess: steps from output tensors to output columns; without any, each output tensor is a column.
        dtype: the element type the model computes in; part of the numerics class.
        max_batch_rows: the largest micro-batch the model takes.
        licence: an SPDX expression.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    v: Literal[1] = 1
    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    version: str = Field(min_length=1)
    engine: str
    files: dict[str, str] = Field(default_factory=dict)
    inputs: tuple[ModelInput, ...] = Field(min_length=1)
    outputs: tuple[ModelOutput, ...] = ()
    postprocess: tuple[Step, ...] = ()
    dtype: str = "FP32"
    max_batch_rows: int = Field(default=1024, ge=1)
    licence: str

    @property
    def columns(self) -> tuple[str, ...]:
        """The dataset columns the model reads, in the order of its inputs, each once."""
        return tuple(dict.fromkeys(tensor.source for tensor in self.inputs))

    def to_json(self) -> bytes:
        """Give the text of `dim-model.json` (sorted keys, two spaces, a final newline)."""
        value: dict[str, Any] = self.model_dump(mode="json", exclude_none=True)
        return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()

    @classmethod
    def from_json(cls, data: bytes) -> ModelDescription:
        """Read `dim-model.json`.

        Raises:
            InputError: it is not JSON, or a field is missing, unknown or wrong.
        """
        try:
            value = json.loads(data)
        except ValueError as error:
            raise InputError(f"{DESCRIPTION_FILE} is not JSON: {error}") from error
        if isinstance(value, dict) and value.get("v", 1) != 1:
            raise InputError(f"{DESCRIPTION_FILE} has version {value['v']!r}, this DIM reads version 1")
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise InputError(f"{DESCRIPTION_FILE}, {where or 'its root'}: {first['msg']}") from error
