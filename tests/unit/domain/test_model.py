from __future__ import annotations

import json
from typing import Any

import pytest

from dim_pipelines.domain.model import ModelDescription
from dim_pipelines.errors import InputError

PLAIN: dict[str, Any] = {
    "name": "digits-cnn",
    "version": "1",
    "engine": "torch",
    "files": {"program": "model.pt2"},
    "inputs": [
        {
            "name": "x",
            "datatype": "FP32",
            "shape": [1, 8, 8],
            "column": "image",
            "preprocess": [{"op": "scale", "factor": 0.5}],
        },
        {"name": "y", "datatype": "FP32", "shape": [3]},
        {"name": "z", "datatype": "FP32", "shape": [3], "column": "image"},
    ],
    "licence": "Apache-2.0",
}


def read(**change: Any) -> ModelDescription:
    return ModelDescription.from_json(json.dumps({**PLAIN, **change}).encode())


def test_the_columns_are_those_the_inputs_name_each_once() -> None:
    assert read().columns == ("image", "y")


def test_the_settings_of_a_step_are_kept() -> None:
    assert read().inputs[0].preprocess[0].model_dump() == {"op": "scale", "factor": 0.5}


def test_the_text_leads_back_to_the_description_and_is_always_the_same() -> None:
    description = read()
    text = description.to_json()
    assert ModelDescription.from_json(text) == description
    assert ModelDescription.from_json(text).to_json() == text
    assert text.endswith(b"}\n")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"{", "dim-model.json is not JSON"),
        (b"\xff", "dim-model.json is not JSON"),
        (b"[]", "dim-model.json, its root: "),
        (json.dumps({**PLAIN, "v": 2}).encode(), "has version 2, this DIM reads version 1"),
        (json.dumps({**PLAIN, "inputs": []}).encode(), "dim-model.json, inputs: "),
        (json.dumps({**PLAIN, "name": "../up"}).encode(), "dim-model.json, name: "),
        (json.dumps({**PLAIN, "license": "MIT"}).encode(), "dim-model.json, license: Extra inputs"),
        (json.dumps({**PLAIN, "inputs": [{"name": "x", "datatype": "FLOAT", "shape": []}]}).encode(), "inputs.0.data"),
    ],
)
def test_a_wrong_description_is_refused_with_its_place(data: bytes, message: str) -> None:
    with pytest.raises(InputError) as caught:
        ModelDescription.from_json(data)
    assert message in caught.value.message
