"""From column to tensor and from tensor to column: the steps of `content/steps` carried out.

The same functions judge rows at ingest and prepare them on a node, so a row that passes there passes here.
Each step works on all rows at once, except decoding; a row that fails is set aside with its reason and never
touches its neighbours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import PIL
import pyarrow as pa

from dim_pipelines.content.images import decode_image
from dim_pipelines.content.shards import canonical_array
from dim_pipelines.content.steps import (
    Argmax,
    Cast,
    DecodeImage,
    Normalize,
    Op,
    PostOp,
    Reshape,
    Scale,
    Softmax,
    SoftmaxMax,
    nearest,
    postprocess_steps,
    preprocess_steps,
)
from dim_pipelines.content.tensors import DTYPES, Tensor, arrow_type, cast, dense, element_type, takes, to_arrow
from dim_pipelines.domain.events import RowError
from dim_pipelines.domain.model import ModelDescription, ModelInput, ModelOutput
from dim_pipelines.errors import InputError

TRANSFORMS_VERSION: Final = 1
"""Raised whenever a step gives other values than before."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """Rows as tensors.

    Attributes:
        tensors: name → array `[rows, *shape]`; rows in `errors` hold zeros.
        errors: rows that cannot be given to the model, in order, each once.
        shapes: name → shape of one row, with every -1 settled.
    """

    tensors: dict[str, Tensor]
    errors: list[RowError]
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)


def transforms_class() -> str:
    """Name what the steps' bits depend on: their version, NumPy with its kernel for `exp`, Pillow."""
    introspect = getattr(np.lib, "introspect", None)
    found = introspect.opt_func_info(func_name="^exp$", signature="float64") if introspect else {}
    kernels = {info.get("current", "") for signatures in found.values() for info in signatures.values()}
    kernel = "+".join(sorted(kernels)) or "baseline"
    return f"transforms{TRANSFORMS_VERSION}-numpy{np.__version__}-{kernel}-pillow{PIL.__version__}"


def check_transforms(description: ModelDescription) -> None:
    """Check that every step of a description is known and its settings make sense.

    Raises:
        InputError: one is not; the message names the step and the nearest known one.
    """
    for tensor in description.inputs:
        where = f"input {tensor.name!r}"
        for position, step in enumerate(preprocess_steps(tensor.preprocess, where)):
            if isinstance(step, DecodeImage) and position:
                raise InputError(f"{where}: decode_image must be the first step")
            if isinstance(step, Normalize) and len(step.mean) != len(step.std):
                raise InputError(f"{where}: normalize has {len(step.mean)} means and {len(step.std)} deviations")
            if isinstance(step, Cast) and step.datatype == "BYTES":
                raise InputError(f"{where}: cast cannot make BYTES")
    output_columns(description)


def check_column(tensor: ModelInput, type_: pa.DataType) -> None:
    """Check that a column of this (canonical) type can feed the tensor at all.

    Raises:
        InputError: it cannot; the message says what is expected and what was found.
    """
    prepare_column(tensor, pa.array([], type_))


def prepare(inputs: Sequence[ModelInput], batch: pa.RecordBatch | pa.Table) -> Prepared:
    """Make the model's tensors from rows.

    Args:
        inputs: the model's inputs; a size of -1 is the size in the first good row.
        batch: the rows; holds at least the inputs' source columns.

    Raises:
        InputError: a column is missing, or none of its rows could ever fit.
    """
    tensors: dict[str, Tensor] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    reasons: dict[int, str] = {}
    for tensor in inputs:
        names = batch.schema.names
        if tensor.source not in names:
            raise InputError(
                f"column {tensor.source!r} is missing, the model reads it", hint=nearest(tensor.source, names)
            )
        values, shape, bad = prepare_column(tensor, batch.column(tensor.source))
        tensors[tensor.name], shapes[tensor.name] = values, shape
        for row, reason in bad.items():
            reasons.setdefault(row, f"column {tensor.source!r}: {reason}")
    return Prepared(tensors, [RowError(row, reasons[row]) for row in sorted(reasons)], shapes)


def prepare_column(
    tensor: ModelInput, column: pa.Array | pa.ChunkedArray
) -> tuple[Tensor, tuple[int, ...], dict[int, str]]:
    """Make one tensor from its column: the array, the shape of a row, and row → reason of bad rows.

    Raises:
        InputError: no row of such a column could ever fit.
    """
    array = canonical_array(column)
    steps = preprocess_steps(tensor.preprocess, f"input {tensor.name!r}")
    if steps and isinstance(steps[0], DecodeImage):
        reshaped = any(isinstance(step, Reshape) for step in steps)
        values, bad = _decoded(array, steps[0], None if reshaped else tensor.shape)
        steps = steps[1:]
    elif tensor.datatype == "BYTES":
        return _bytes(tensor, array)
    else:
        _check_kind(tensor, array.type, bool(steps))
        shape = (
            (-1,) * element_type(array.type)[1] if any(isinstance(step, Reshape) for step in steps) else tensor.shape
        )
        values, _, bad = dense(array, shape)
    if len(bad) == len(array):
        shape = tuple(max(size, 0) for size in tensor.shape)
        return np.zeros((len(array), *shape), dtype=DTYPES[tensor.datatype]), shape, bad
    for step in steps:
        values, more = _apply(step, values)
        bad = more | bad
    values, more = cast(values, tensor.datatype)
    bad = more | bad
    if values.dtype.kind == "f":
        for row in np.flatnonzero(np.isnan(values.reshape(len(values), -1)).any(axis=1)):
            bad.setdefault(int(row), "NaN")
    found = values.shape[1:]
    if not _fits(found, tensor.shape):
        raise InputError(f"the model takes shape {list(tensor.shape)} per row, the steps give {list(found)}")
    if bad:
        values = values.copy()  # it may be a view of the column
        values[list(bad)] = 0
    return values, found, bad


def finish(description: ModelDescription, outputs: Mapping[str, Tensor]) -> dict[str, Tensor | list[Any]]:
    """Make the output columns from the model's output tensors.

    Args:
        description: the model; without `postprocess` each output is a column, with it the columns are exactly
            what the steps make, in their order.
        outputs: name → array `[rows, *shape]`.

    Raises:
        InputError: an output is missing or not of the declared shape.
    """
    checked = {output.name: _checked(output, outputs) for output in description.outputs}
    if not description.postprocess:
        return dict(checked)
    columns: dict[str, Tensor | list[Any]] = {}
    for step in postprocess_steps(description.postprocess):
        columns[step.output] = _finished(step, checked[step.input])
    return columns


def output_columns(description: ModelDescription) -> dict[str, pa.DataType]:
    """Give name → Arrow type of the output columns, without running anything.

    Raises:
        InputError: a step of `postprocess` is unknown, names an unknown tensor, or makes a column twice.
    """
    tensors = {output.name: output for output in description.outputs}
    if not description.postprocess:
        return {name: arrow_type(output.datatype, output.shape) for name, output in tensors.items()}
    columns: dict[str, pa.DataType] = {}
    for step in postprocess_steps(description.postprocess):
        source, name = step.input, step.output
        if source not in tensors:
            raise InputError(f"postprocess names no output {source!r}", hint=nearest(source, list(tensors)))
        if name in columns:
            raise InputError(f"postprocess makes the column {name!r} twice")
        output = tensors[source]
        if isinstance(step, Argmax):
            columns[name] = pa.string() if step.labels is not None else pa.int64()
        elif isinstance(step, SoftmaxMax):
            columns[name] = pa.float32()
        else:
            columns[name] = arrow_type("FP32" if isinstance(step, Softmax) else output.datatype, output.shape)
    return columns


def output_batch(
    description: ModelDescription, ids: pa.Array, id_name: str, columns: Mapping[str, Tensor | list[Any]]
) -> pa.RecordBatch:
    """Put ids and output columns together as the rows of an output shard.

    Raises:
        InputError: an output column has the id's name.
    """
    types = output_columns(description)
    if id_name in types:
        raise InputError(f"the model's output {id_name!r} has the name of the id column", hint="name another id column")
    arrays = [ids] + [to_arrow(columns[name], type_) for name, type_ in types.items()]
    return pa.RecordBatch.from_arrays(arrays, names=[id_name, *types])


def _check_kind(tensor: ModelInput, type_: pa.DataType, has_steps: bool) -> None:
    """Refuse a column whose elements could never become the tensor's; steps may make any number any other."""
    bottom, _ = element_type(type_)
    if not takes("FP64" if has_steps else tensor.datatype, bottom):
        raise InputError(
            f"the model takes {tensor.datatype} {list(tensor.shape)} per row, found a column of {type_}",
            hint="choose another column, convert it, or add steps to the model's preprocess",
        )


def _decoded(array: pa.Array, step: DecodeImage, shape: tuple[int, ...] | None) -> tuple[Tensor, dict[int, str]]:
    """Decode a column of image files; without a shape, or where a size is -1, the first good image sets it."""
    if not (pa.types.is_binary(array.type) or pa.types.is_null(array.type)):
        raise InputError(f"the model decodes images (binary), found a column of {array.type}")
    images: dict[int, Tensor] = {}
    bad: dict[int, str] = {}
    for row, value in enumerate(array):
        if not value.is_valid:
            bad[row] = "null"
            continue
        try:
            image = decode_image(value.as_py(), step.mode, step.size, step.layout)
        except InputError as error:
            bad[row] = error.message
            continue
        if shape is not None and not _fits(image.shape, shape):
            bad[row] = f"shape {list(shape)} is expected, the image gives {list(image.shape)}"
            continue
        shape = image.shape
        images[row] = image
    values = np.zeros((len(array), *(max(size, 0) for size in shape or ())), dtype=np.uint8)
    for row, image in images.items():
        values[row] = image
    return values, bad


def _bytes(tensor: ModelInput, array: pa.Array) -> tuple[Tensor, tuple[int, ...], dict[int, str]]:
    """Give a column of texts or bytes as an array of bytes objects `[rows]` or `[rows, 1]`."""
    if tensor.shape not in ((), (1,)) or not takes("BYTES", array.type):
        raise InputError(f"the model takes BYTES {list(tensor.shape)} per row, found a column of {array.type}")
    values = np.empty(len(array), dtype=DTYPES["BYTES"])
    bad: dict[int, str] = {}
    for row, value in enumerate(array.cast(pa.binary()).to_pylist()):
        values[row] = b"" if value is None else value
        if value is None:
            bad[row] = "null"
    return values.reshape((-1, *tensor.shape)), tensor.shape, bad


def _apply(step: Op, values: Tensor) -> tuple[Tensor, dict[int, str]]:
    """Carry out one step after decoding on all rows."""
    if isinstance(step, Scale):
        return values.astype(np.float32) * np.float32(step.factor) + np.float32(step.offset), {}
    if isinstance(step, Normalize):
        mean, std = (_along(np.array(part, dtype=np.float32), values, step.axis) for part in (step.mean, step.std))
        return (values.astype(np.float32) - mean) / std, {}
    if isinstance(step, Cast):
        return cast(values, step.datatype, force=True)
    if isinstance(step, Reshape):
        try:
            return values.reshape((len(values), *step.shape)), {}
        except ValueError as error:
            raise InputError(f"rows of shape {list(values.shape[1:])} cannot become {list(step.shape)}") from error
    raise InputError(f"the step {type(step).__name__} must come first")


def _along(part: Tensor, values: Tensor, axis: int) -> Tensor:
    """Shape per-channel numbers so that they meet the row's axis."""
    if len(part) == 1:
        return part
    row = values.shape[1:]
    if not -len(row) <= axis < len(row) or row[axis] != len(part):
        raise InputError(f"normalize has {len(part)} entries for axis {axis} of rows of shape {list(row)}")
    shape = [1] * values.ndim
    shape[1 + axis % len(row)] = len(part)
    return part.reshape(shape)


def _fits(found: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    return len(found) == len(shape) and all(want in (-1, have) for have, want in zip(found, shape, strict=True))


def _checked(output: ModelOutput, outputs: Mapping[str, Tensor]) -> Tensor:
    if output.name not in outputs:
        raise InputError(f"the model gave no output {output.name!r}", hint=nearest(output.name, list(outputs)))
    values = outputs[output.name]
    if not _fits(values.shape[1:], output.shape):
        raise InputError(
            f"output {output.name!r}: shape {list(output.shape)} per row is expected, found {list(values.shape[1:])}"
        )
    if values.dtype != DTYPES[output.datatype]:
        raise InputError(f"output {output.name!r}: {output.datatype} is expected, found {values.dtype}")
    return values


def _finished(step: PostOp, values: Tensor) -> Tensor | list[Any]:
    flat = values.reshape(len(values), -1)
    if isinstance(step, Argmax):
        best: Tensor = flat.argmax(axis=1).astype(np.int64)
        if step.labels is None:
            return best
        if flat.shape[1] > len(step.labels):
            raise InputError(f"argmax has {len(step.labels)} labels for {flat.shape[1]} values")
        return [step.labels[position] for position in best]
    if isinstance(step, (Softmax, SoftmaxMax)):
        wide = flat.astype(np.float64)
        powers = np.exp(wide - wide.max(axis=1, keepdims=True))
        # summed in order, because NumPy's pairwise sum may change its blocks between versions
        shares: Tensor = (powers / np.add.accumulate(powers, axis=1)[:, -1:]).astype(np.float32)
        largest: Tensor = shares.max(axis=1)
        return largest if isinstance(step, SoftmaxMax) else shares.reshape(values.shape)
    return values
