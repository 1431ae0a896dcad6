from __future__ import annotations

import io
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dim_pipelines.content.steps import nearest
from dim_pipelines.content.transforms import (
    check_column,
    check_transforms,
    finish,
    output_batch,
    output_columns,
    prepare,
    transforms_class,
)
from dim_pipelines.domain.model import ModelDescription, ModelInput
from dim_pipelines.errors import InputError


def tensor(datatype: str, shape: tuple[int, ...], *steps: dict[str, Any], column: str = "c") -> ModelInput:
    return ModelInput.model_validate(
        {"name": "x", "datatype": datatype, "shape": shape, "column": column, "preprocess": steps}
    )


def rows(column: pa.Array) -> pa.RecordBatch:
    return pa.record_batch({"c": column})


def png(height: int, width: int, grey: int = 7) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((height, width), grey, np.uint8)).save(file, "PNG")
    return file.getvalue()


DECODE = {"op": "decode_image", "mode": "L"}


def test_a_plain_column_is_cast_to_the_models_datatype() -> None:
    prepared = prepare([tensor("FP32", ())], rows(pa.array([1, 2])))
    assert prepared.tensors["x"].dtype == np.float32
    assert prepared.tensors["x"].tolist() == [1.0, 2.0]
    assert (prepared.errors, prepared.shapes) == ([], {"x": ()})


def test_bad_rows_are_named_in_order_and_hold_zeros() -> None:
    column = pa.array([1.0, None, float("nan"), 1e300, 2.0])
    prepared = prepare([tensor("FP32", ())], rows(column))
    assert prepared.tensors["x"].tolist() == [1.0, 0.0, 0.0, 0.0, 2.0]
    assert [(error.row, error.reason) for error in prepared.errors] == [
        (1, "column 'c': null"),
        (2, "column 'c': NaN"),
        (3, "column 'c': the value 1e+300 does not fit FP32"),
    ]


def test_the_column_itself_is_never_written_to() -> None:
    column = pa.array([1.0, float("nan")])
    prepare([tensor("FP64", ())], rows(column))
    assert column[0].as_py() == 1.0
    assert np.isnan(column[1].as_py())


def test_the_first_reason_of_a_row_counts() -> None:
    inputs = [tensor("FP32", ()), ModelInput(name="y", datatype="INT8", shape=(), column="d")]
    batch = pa.record_batch({"c": pa.array([None, 1.0]), "d": pa.array([999, 999])})
    prepared = prepare(inputs, batch)
    assert [error.reason for error in prepared.errors] == [
        "column 'c': null",
        "column 'd': the value 999 does not fit INT8",
    ]


def test_images_are_decoded_scaled_and_set_aside_when_broken() -> None:
    column = pa.array([png(2, 3), b"junk", None, png(3, 3), png(2, 3, 255)], pa.binary())
    prepared = prepare([tensor("FP32", (1, 2, 3), DECODE, {"op": "scale", "factor": 1 / 255})], rows(column))
    assert prepared.tensors["x"].shape == (5, 1, 2, 3)
    assert prepared.tensors["x"][0, 0, 0, 0] == np.float32(7) * np.float32(1 / 255)
    assert prepared.tensors["x"][4].max() == np.float32(255) * np.float32(1 / 255)
    assert not prepared.tensors["x"][1:4].any()
    assert [(error.row, error.reason) for error in prepared.errors] == [
        (1, "column 'c': the image does not decode"),
        (2, "column 'c': null"),
        (3, "column 'c': shape [1, 2, 3] is expected, the image gives [1, 3, 3]"),
    ]


def test_an_open_image_size_is_that_of_the_first_good_image() -> None:
    column = pa.array([b"junk", png(2, 3), png(4, 4)], pa.binary())
    prepared = prepare([tensor("UINT8", (1, -1, -1), DECODE)], rows(column))
    assert prepared.shapes == {"x": (1, 2, 3)}
    assert [error.row for error in prepared.errors] == [0, 2]


def test_images_are_resized() -> None:
    prepared = prepare([tensor("UINT8", (1, 8, 8), DECODE | {"size": [8, 8]})], rows(pa.array([png(2, 3), png(5, 9)])))
    assert prepared.tensors["x"].shape == (2, 1, 8, 8)


def test_rows_that_are_all_bad_give_tensors_of_zeros() -> None:
    prepared = prepare(
        [tensor("FP32", (1, 2, -1), DECODE, {"op": "normalize", "mean": [1], "std": [2]})], rows(pa.array([b"x"]))
    )
    assert prepared.tensors["x"].shape == (1, 1, 2, 0)
    assert len(prepared.errors) == 1


def test_normalize_works_per_channel() -> None:
    column = pa.array([[[1.0, 2.0], [10.0, 20.0]]])
    step = {"op": "normalize", "mean": [1, 10], "std": [1, 10]}
    assert prepare([tensor("FP32", (2, 2), step)], rows(column)).tensors["x"].tolist() == [[[0, 1], [0, 1]]]
    last = {"op": "normalize", "mean": [1, 2], "std": [1, 1], "axis": -1}
    assert prepare([tensor("FP32", (2, 2), last)], rows(column)).tensors["x"].tolist() == [[[0, 0], [9, 18]]]
    same = {"op": "normalize", "mean": [1], "std": [2]}
    assert prepare([tensor("FP32", (2, 2), same)], rows(column)).tensors["x"].tolist() == [[[0, 0.5], [4.5, 9.5]]]


@pytest.mark.parametrize("step", [{"axis": 5}, {"axis": 0, "mean": [1, 2, 3], "std": [1, 2, 3]}])
def test_normalize_with_numbers_for_another_shape_is_an_error(step: dict[str, Any]) -> None:
    step = {"op": "normalize", "mean": [1, 2], "std": [1, 2]} | step
    with pytest.raises(InputError, match="normalize has"):
        prepare([tensor("FP32", (2, 2), step)], rows(pa.array([[[1.0, 2.0], [10.0, 20.0]]])))


def test_casts_and_reshapes() -> None:
    steps = {"op": "cast", "datatype": "INT64"}, {"op": "reshape", "shape": [2, 1]}
    column = pa.array([[1.9, -2.9], None], pa.list_(pa.float32(), 2))
    prepared = prepare([tensor("INT64", (2, 1), *steps)], rows(column))
    assert prepared.tensors["x"].tolist() == [[[1], [-2]], [[0], [0]]]
    with pytest.raises(InputError, match="cannot become"):
        prepare([tensor("FP32", (3,), {"op": "reshape", "shape": [3]})], rows(pa.array([[1.0, 2.0]])))
    with pytest.raises(InputError, match=r"takes shape \[5\] per row, the steps give \[2\]"):
        prepare([tensor("FP32", (5,), {"op": "reshape", "shape": [2]})], rows(pa.array([[1.0, 2.0]])))


def test_reshaped_images_need_one_size_only() -> None:
    column = pa.array([png(2, 3), png(3, 3)])
    prepared = prepare([tensor("UINT8", (6,), DECODE, {"op": "reshape", "shape": [6]})], rows(column))
    assert prepared.tensors["x"].shape == (2, 6)
    assert [error.row for error in prepared.errors] == [1]


def test_scale_has_an_offset() -> None:
    assert prepare([tensor("FP32", (), {"op": "scale", "factor": 2, "offset": 1})], rows(pa.array([3]))).tensors[
        "x"
    ].tolist() == [7.0]


def test_texts_are_bytes() -> None:
    prepared = prepare([tensor("BYTES", (1,))], rows(pa.array(["é", None])))
    assert prepared.tensors["x"].tolist() == [["é".encode()], [b""]]
    assert [error.reason for error in prepared.errors] == ["column 'c': null"]


@pytest.mark.parametrize(
    ("wanted", "type_", "message"),
    [
        (tensor("FP32", ()), pa.string(), r"takes FP32 \[\] per row, found a column of string"),
        (tensor("FP32", (4,)), pa.list_(pa.float32(), 3), r"shape \[4\] per row is expected"),
        (tensor("INT64", ()), pa.float64(), "takes INT64"),
        (tensor("FP32", (1, 8, 8), DECODE), pa.string(), r"decodes images \(binary\), found a column of string"),
        (tensor("BYTES", (2,)), pa.string(), r"takes BYTES \[2\] per row"),
        (tensor("BYTES", ()), pa.int8(), "found a column of int8"),
        (tensor("FP32", (), {"op": "scale", "factor": 2}), pa.binary(), "takes FP32"),
    ],
)
def test_a_column_that_never_fits_says_what_is_expected_and_what_was_found(
    wanted: ModelInput, type_: pa.DataType, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        check_column(wanted, type_)


@pytest.mark.parametrize(
    ("wanted", "type_"),
    [
        (tensor("FP32", ()), pa.int64()),
        (tensor("FP32", (2, 2)), pa.list_(pa.float64())),
        (tensor("FP32", (1, 8, 8), DECODE), pa.binary()),
        (tensor("INT8", (), {"op": "scale", "factor": 2}, {"op": "cast", "datatype": "INT8"}), pa.float32()),
        (tensor("UINT8", (4,), DECODE, {"op": "reshape", "shape": [4]}), pa.binary()),
    ],
)
def test_a_column_that_may_fit_passes_without_rows(wanted: ModelInput, type_: pa.DataType) -> None:
    check_column(wanted, type_)


def test_a_missing_column_names_the_nearest() -> None:
    with pytest.raises(InputError, match="column 'pixel' is missing") as caught:
        prepare([tensor("FP32", (), column="pixel")], pa.record_batch({"pixels": [1.0]}))
    assert caught.value.hint == "did you mean 'pixels'?"
    assert nearest("PIXELS", ["x", "pixels"]) == "did you mean 'pixels'?"
    assert nearest("zz", ["a", "b"]) == "there is: a, b"


def test_a_decoder_cannot_come_later() -> None:
    with pytest.raises(InputError, match="DecodeImage must come first"):
        prepare([tensor("FP32", (), {"op": "scale", "factor": 1}, DECODE)], rows(pa.array([1])))


@given(st.lists(st.floats(width=32, allow_nan=False) | st.none(), min_size=1, max_size=20), st.data())
def test_a_row_is_the_same_whatever_lies_beside_it(values: list[float | None], data: st.DataObject) -> None:
    wanted = tensor("FP32", (), {"op": "scale", "factor": 0.1}, {"op": "normalize", "mean": [3], "std": [7]})
    row = data.draw(st.integers(0, len(values) - 1))
    together = prepare([wanted], rows(pa.array(values, pa.float32())))
    alone = prepare([wanted], rows(pa.array(values[row : row + 1], pa.float32())))
    assert together.tensors["x"][row].tobytes() == alone.tensors["x"][0].tobytes()
    assert (row in [error.row for error in together.errors]) == bool(alone.errors)


def description(*steps: dict[str, Any], **changes: Any) -> ModelDescription:
    return ModelDescription.model_validate(
        {
            "name": "m",
            "version": "1",
            "engine": "torch",
            "inputs": [{"name": "x", "datatype": "FP32", "shape": []}],
            "outputs": [
                {"name": "y", "datatype": "FP32", "shape": [3]},
                {"name": "z", "datatype": "INT64", "shape": []},
            ],
            "postprocess": steps,
            "licence": "MIT",
            **changes,
        }
    )


Y = np.array([[1, 3, 2], [5, 5, 4]], dtype=np.float32)
Z = np.array([7, 8])


def test_without_steps_each_output_is_a_column() -> None:
    columns = finish(description(), {"y": Y, "z": Z, "more": Z})
    assert list(columns) == ["y", "z"] == list(output_columns(description()))
    assert output_columns(description())["y"] == pa.list_(pa.float32(), 3)


def test_with_steps_the_columns_are_what_the_steps_make() -> None:
    made = description(
        {"op": "argmax", "input": "y", "output": "best"},
        {"op": "argmax", "input": "y", "output": "name", "labels": ["a", "b", "c"]},
        {"op": "softmax_max", "input": "y", "output": "sure"},
        {"op": "softmax", "input": "y", "output": "shares"},
        {"op": "rename", "input": "z", "output": "zed"},
    )
    columns = finish(made, {"y": Y, "z": Z})
    assert list(columns) == list(output_columns(made)) == ["best", "name", "sure", "shares", "zed"]
    assert list(columns["best"]) == [1, 0]
    assert columns["name"] == ["b", "a"]
    shares = np.exp(Y) / np.exp(Y).sum(axis=1, keepdims=True)
    assert np.allclose(columns["shares"], shares)
    assert np.allclose(columns["sure"], shares.max(axis=1))
    batch = output_batch(made, pa.array(["r1", "r2"]), "id", columns)
    assert batch.schema == pa.schema([("id", pa.string()), *output_columns(made).items()])


def test_softmax_of_large_numbers_is_finite() -> None:
    made = description({"op": "softmax_max", "input": "y", "output": "sure"})
    huge = np.array([[1e30, 0, 0]], dtype=np.float32)
    assert finish(made, {"y": huge, "z": Z[:1]})["sure"] == [1.0]


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ({"z": Z}, "the model gave no output 'y'"),
        ({"y": Y[:, :2], "z": Z}, r"output 'y': shape \[3\] per row is expected, found \[2\]"),
        ({"y": Y.astype(np.float64), "z": Z}, "output 'y': FP32 is expected, found float64"),
    ],
)
def test_an_output_that_is_not_as_declared_is_an_error(outputs: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        finish(description(), outputs)


def test_argmax_needs_a_label_for_each_value() -> None:
    with pytest.raises(InputError, match="argmax has 1 labels for 3 values"):
        finish(description({"op": "argmax", "input": "y", "output": "n", "labels": ["a"]}), {"y": Y, "z": Z})


def test_an_output_cannot_have_the_name_of_the_id() -> None:
    with pytest.raises(InputError, match="'y' has the name of the id column"):
        output_batch(description(), pa.array([1]), "y", {"y": Y[:1], "z": Z[:1]})


@pytest.mark.parametrize(
    ("changes", "message", "hint"),
    [
        (
            {"postprocess": [{"op": "argmx", "input": "y", "output": "o"}]},
            "unknown step 'argmx'",
            "did you mean 'argmax'?",
        ),
        (
            {"postprocess": [{"op": "argmax", "input": "yy", "output": "o"}]},
            "names no output 'yy'",
            "did you mean 'y'?",
        ),
        ({"postprocess": [{"op": "argmax", "input": "y"}]}, "step 'argmax', output: Field required", ""),
        ({"postprocess": [{"op": "softmax", "input": "y", "output": "o"}] * 2}, "makes the column 'o' twice", ""),
    ],
)
def test_steps_after_the_model_are_checked(changes: dict[str, Any], message: str, hint: str) -> None:
    with pytest.raises(InputError) as caught:
        check_transforms(description(**changes))
    assert message in caught.value.message
    assert caught.value.hint == hint


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([{"op": "scale"}], "step 'scale', factor: Field required"),
        ([{"op": "scale", "factor": 1, "ofset": 2}], "step 'scale', ofset: Extra inputs"),
        ([{"op": "scale", "factor": 1}, DECODE], "decode_image must be the first step"),
        ([{"op": "normalize", "mean": [1], "std": [1, 2]}], "normalize has 1 means and 2 deviations"),
        ([{"op": "cast", "datatype": "BYTES"}], "cast cannot make BYTES"),
        ([{"op": "decode_imag"}], "unknown step 'decode_imag'"),
    ],
)
def test_steps_before_the_model_are_checked(steps: list[dict[str, Any]], message: str) -> None:
    inputs = [{"name": "x", "datatype": "FP32", "shape": [], "preprocess": steps}]
    with pytest.raises(InputError, match=message):
        check_transforms(description(inputs=inputs))


def test_good_steps_pass() -> None:
    steps = [DECODE, {"op": "normalize", "mean": [1], "std": [2]}, {"op": "cast", "datatype": "FP16"}]
    check_transforms(description(inputs=[{"name": "x", "datatype": "FP16", "shape": [1, 2, 2], "preprocess": steps}]))


def test_the_class_of_the_steps_names_what_their_bits_depend_on() -> None:
    assert transforms_class().startswith(f"transforms1-numpy{np.__version__}-")
    assert transforms_class() == transforms_class()
