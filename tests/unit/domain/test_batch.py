from __future__ import annotations

from typing import Any

import pytest

from dim_pipelines.domain.batch import BatchSpec
from dim_pipelines.errors import InputError

SHORT: dict[str, Any] = {"name": "digits", "models": ["digits-cnn"], "input": "digits/"}


def test_short_forms_mean_the_long_ones() -> None:
    spec = BatchSpec.read({**SHORT, "on_row_error": "dead_letter"})
    long = BatchSpec.read(
        {
            **SHORT,
            "v": 1,
            "models": [{"model": "digits-cnn", "parameters": {}}],
            "input": {"uri": "digits/"},
            "on_row_error": {"policy": "dead_letter", "max_error_fraction": 1.0},
        }
    )
    assert spec == long


def test_a_bad_row_ends_the_batch_unless_the_spec_says_otherwise() -> None:
    assert BatchSpec.read(SHORT).on_row_error.policy == "fail"


def test_plain_data_leads_back_to_the_spec() -> None:
    spec = BatchSpec.read({**SHORT, "shard_rows": 32, "batch_rows": 8, "requirements": {"device": "cpu"}})
    plain = spec.to_plain()
    assert BatchSpec.read(plain) == spec
    assert "format" not in plain["input"]


@pytest.mark.parametrize(
    ("change", "where", "hint"),
    [
        ({"shard_row": 3}, "shard_row: unknown key", "did you mean 'shard_rows'?"),
        ({"input": {"uri": "x", "id_colum": "i"}}, "input.id_colum: unknown key", "did you mean 'id_column'?"),
        ({"output": {"formats": "csv"}}, "output.formats: unknown key", "did you mean 'format'?"),
        ({"models": [{"model": "m", "parameter": {}}]}, "models.0.parameter: unknown", "did you mean 'parameters'?"),
        ({"zzz": 1}, "zzz: unknown key", "known keys: batch_rows, input, models"),
        ({"shard_rows": 0}, "shard_rows: Input should be greater", ""),
        ({"models": []}, "models: ", ""),
        ({"models": "digits"}, "models: ", ""),
        ({"name": ""}, "name: ", ""),
        ({"v": 2}, "v: ", ""),
        ({"on_row_error": "skip"}, "on_row_error.policy: ", ""),
    ],
)
def test_a_mistake_is_named_with_its_place_and_the_nearest_key(change: dict[str, Any], where: str, hint: str) -> None:
    with pytest.raises(InputError) as caught:
        BatchSpec.read({**SHORT, **change})
    assert caught.value.message.startswith(f"batch spec, {where}")
    assert caught.value.hint.startswith(hint)


def test_something_that_is_no_mapping_is_refused() -> None:
    with pytest.raises(InputError, match="batch spec, the spec: "):
        BatchSpec.read([])  # type: ignore[arg-type]


def test_a_missing_key_is_named() -> None:
    with pytest.raises(InputError, match="batch spec, input: Field required"):
        BatchSpec.read({"name": "digits", "models": ["m"]})


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (float("nan"), "nan is not a finite number"),
        ([1, [float("inf")]], "inf is not a finite number"),
        (2**63, "does not fit 64 bits"),
        ({"deep": {1: 2}}, "the key 1 is not a text"),
        (b"x", "a bytes is not plain data"),
        ({"when": object()}, "a object is not plain data"),
    ],
)
def test_parameters_are_plain_data(value: object, message: str) -> None:
    with pytest.raises(InputError) as caught:
        BatchSpec.read({**SHORT, "models": [{"model": "m", "parameters": {"p": value}}]})
    assert message in caught.value.message
    assert caught.value.message.startswith("batch spec, models.0.parameters: ")


def test_parameters_of_every_plain_kind_are_kept() -> None:
    plain = {"a": None, "b": True, "c": -(2**63), "d": 0.5, "e": "text", "f": [1, {"g": []}]}
    spec = BatchSpec.read({**SHORT, "models": [{"model": "m", "parameters": plain}]})
    assert spec.models[0].parameters == plain
    assert spec.to_plain()["models"][0]["parameters"] == plain
