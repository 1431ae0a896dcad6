"""The steps that `dim-model.json` may name, each with its own settings, before and after the model."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Final, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dim_pipelines.domain.model import Datatype, Step
from dim_pipelines.errors import InputError


class Op(BaseModel):
    """A step with its settings checked."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class PostOp(Op):
    """A step that makes the column `output` from the output tensor `input`."""

    input: str
    output: str


class DecodeImage(Op):
    """Decode an image file's bytes into uint8; the first step only. `size` is (height, width)."""

    op: Literal["decode_image"]
    mode: Literal["L", "RGB", "RGBA"] = "RGB"
    size: tuple[int, int] | None = None
    layout: Literal["CHW", "HWC"] = "CHW"


class Scale(Op):
    """`value * factor + offset`, in float32."""

    op: Literal["scale"]
    factor: float
    offset: float = 0.0


class Normalize(Op):
    """`(value - mean) / std` in float32, per entry of the row's axis `axis`; one entry serves all."""

    op: Literal["normalize"]
    mean: tuple[float, ...] = Field(min_length=1)
    std: tuple[float, ...] = Field(min_length=1)
    axis: int = 0


class Cast(Op):
    """To another element type; floats are cut towards zero."""

    op: Literal["cast"]
    datatype: Datatype


class Reshape(Op):
    """The same values in another shape per row."""

    op: Literal["reshape"]
    shape: tuple[int, ...]


class Argmax(PostOp):
    """Position of the largest value of a row (the first of equals), or its label: int64 or text."""

    op: Literal["argmax"]
    labels: tuple[str, ...] | None = None


class SoftmaxMax(PostOp):
    """The largest softmax value of a row, in float32 (computed in float64)."""

    op: Literal["softmax_max"]


class Softmax(PostOp):
    """Softmax over a row, in float32 (computed in float64)."""

    op: Literal["softmax"]


class Rename(PostOp):
    """The tensor itself as a column."""

    op: Literal["rename"]


PREPROCESS: Final[dict[str, type[Op]]] = {
    "decode_image": DecodeImage,
    "scale": Scale,
    "normalize": Normalize,
    "cast": Cast,
    "reshape": Reshape,
}
POSTPROCESS: Final[dict[str, type[PostOp]]] = {
    "argmax": Argmax,
    "softmax_max": SoftmaxMax,
    "softmax": Softmax,
    "rename": Rename,
}


def preprocess_steps(steps: Sequence[Step], where: str) -> list[Op]:
    """Read the steps before the model.

    Args:
        steps: as the description holds them.
        where: names the place in messages.

    Raises:
        InputError: a step is unknown (the nearest is named) or a setting is wrong.
    """
    return [_read(step, PREPROCESS.get(step.op), list(PREPROCESS), where) for step in steps]


def postprocess_steps(steps: Sequence[Step]) -> list[PostOp]:
    """Read the steps after the model.

    Raises:
        InputError: a step is unknown (the nearest is named) or a setting is wrong.
    """
    return [_read(step, POSTPROCESS.get(step.op), list(POSTPROCESS), "postprocess") for step in steps]


def nearest(name: str, known: Sequence[str]) -> str:
    """Give a hint that names the nearest known name, or all of them (up to twenty)."""
    near = [other for other in known if other.lower() == name.lower()]
    near = near or difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"there is: {', '.join(list(known)[:20])}"


AnyOp = TypeVar("AnyOp", bound=Op)


def _read(step: Step, kind: type[AnyOp] | None, known: Sequence[str], where: str) -> AnyOp:
    if kind is None:
        raise InputError(f"{where}: unknown step {step.op!r}", hint=nearest(step.op, known))
    try:
        return kind.model_validate(step.model_dump())
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{where}, step {step.op!r}, {place}: {first['msg']}") from error
