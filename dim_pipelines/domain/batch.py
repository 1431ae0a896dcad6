"""What a user submits: the batch's spec, in YAML or JSON.

Unknown keys are errors that name the nearest known key, because a misspelt `shard_row` that is silently
ignored costs a night of computing.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from dim_pipelines.errors import InputError

InputFormat = Literal["parquet", "csv", "images", "dataset"]
OutputFormat = Literal["parquet", "csv"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelRef(_Part):
    """A model by CID, by name (as in `dim model list`) or by path, and its parameters."""

    model: str = Field(min_length=1, description="CID, name or path of a model package")
    parameters: dict[str, Any] = Field(default_factory=dict)

    @field_validator("parameters")
    @classmethod
    def _plain_parameters(cls, value: dict[str, Any]) -> dict[str, Any]:
        _check_plain(value)
        return value


class InputSpec(_Part):
    """Where the rows are.

    Attributes:
        uri: a path, `ipfs://CID` of a file or folder, or the CID of a DIM dataset.
        format: how to read it; found from the name or content when left out.
        columns: the columns to keep besides the id; what the model reads when left out.
        id_column: the column that names rows; when left out, the relative path for images and the row number
            from 0 for all else.
    """

    uri: str = Field(min_length=1)
    format: InputFormat | None = None
    columns: tuple[str, ...] | None = None
    id_column: str | None = None


class OutputSpec(_Part):
    """What the joined table holds: `columns` of the outputs (all when left out) in a file of `format`."""

    columns: tuple[str, ...] | None = None
    format: OutputFormat = "parquet"


class Requirements(_Part):
    """What a node must have: a device of this kind, this much device memory in bytes, these labels."""

    device: Literal["any", "cpu", "cuda"] = "any"
    min_vram: int = Field(default=0, ge=0)
    labels: dict[str, str] = {}


class RowErrorPolicy(_Part):
    """What a bad row does: `fail` ends the batch, `dead_letter` sets it aside up to a fraction of all rows."""

    policy: Literal["fail", "dead_letter"] = "fail"
    max_error_fraction: float = Field(default=1.0, ge=0.0, le=1.0)


class BatchSpec(_Part):
    """A batch as its user describes it.

    Attributes:
        name: a short name for people.
        pattern: how models and rows combine.
        models: the models; a plain string is a model without parameters.
        shard_rows: rows per shard; fixed before sharding, chosen when left out.
        batch_rows: rows per micro-batch; fixed before sharding, chosen when left out.
        numerics: `class` keeps the batch in one numerics class, `any` does not (then equal CIDs are not promised).
        priority: larger goes first where the orchestrator has to choose.
    """

    v: Literal[1] = 1
    name: str = Field(min_length=1, max_length=200)
    pattern: str = "collaborative"
    models: tuple[ModelRef, ...] = Field(min_length=1)
    input: InputSpec
    output: OutputSpec = OutputSpec()
    shard_rows: int | None = Field(default=None, ge=1)
    batch_rows: int | None = Field(default=None, ge=1)
    requirements: Requirements = Requirements()
    numerics: Literal["class", "any"] = "class"
    on_row_error: RowErrorPolicy = RowErrorPolicy()
    priority: int = 0

    @field_validator("models", mode="before")
    @classmethod
    def _plain_models(cls, value: object) -> object:
        if isinstance(value, (list, tuple)):
            return [{"model": item} if isinstance(item, str) else item for item in value]
        return value

    @field_validator("input", mode="before")
    @classmethod
    def _plain_input(cls, value: object) -> object:
        return {"uri": value} if isinstance(value, str) else value

    @field_validator("on_row_error", mode="before")
    @classmethod
    def _plain_policy(cls, value: object) -> object:
        return {"policy": value} if isinstance(value, str) else value

    @classmethod
    def read(cls, value: Mapping[str, Any]) -> BatchSpec:
        """Read plain data (from YAML or JSON).

        Raises:
            InputError: a key is unknown (the nearest known one is named), missing or wrong; the message says where.
        """
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            raise _explained(error) from error

    def to_plain(self) -> dict[str, Any]:
        """Give plain data without what was left out."""
        return self.model_dump(mode="json", exclude_none=True)


def _check_plain(value: object) -> None:
    """Refuse what JSON and dag-cbor do not both hold: parameters become part of the work's identity."""
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise ValueError(f"the key {key!r} is not a text")
            _check_plain(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _check_plain(item)
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{value} is not a finite number")
    elif isinstance(value, int):
        if not -(2**63) <= value < 2**63:
            raise ValueError(f"{value} does not fit 64 bits")
    elif value is not None and not isinstance(value, str):
        raise ValueError(f"a {type(value).__name__} is not plain data: null, numbers, texts, lists and maps")


def _explained(error: ValidationError) -> InputError:
    first = error.errors()[0]
    path = [str(part) for part in first["loc"]]
    where = ".".join(path) or "the spec"
    if first["type"] != "extra_forbidden":
        return InputError(f"batch spec, {where}: {first['msg']}")
    known = sorted(_fields_at(BatchSpec, path[:-1]))
    near = difflib.get_close_matches(path[-1], known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
    return InputError(f"batch spec, {where}: unknown key", hint=hint)


def _fields_at(model: type[BaseModel], path: list[str]) -> set[str]:
    """The known keys of the part of the spec that `path` leads to."""
    for name in path:
        if name.isdigit():
            continue
        annotation: Any = model.model_fields[name].annotation
        while get_origin(annotation) is not None:
            annotation = next(argument for argument in get_args(annotation) if argument is not Ellipsis)
        model = annotation
    return set(model.model_fields)
