"""The grid around a model: its shape never depends on the rows' neighbours, and bad rows cost only themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dim_pipelines.content.shards import decode_shard, encode_shard
from dim_pipelines.domain.model import ModelDescription, ModelInput, ModelOutput
from dim_pipelines.errors import EngineFailed, InputError
from dim_pipelines.node.engines.shard_run import run_shard

DESCRIPTION = ModelDescription(
    name="m",
    version="1",
    engine="fake",
    licence="MIT",
    inputs=(ModelInput(name="x", datatype="FP64", shape=()),),
    outputs=(ModelOutput(name="y", datatype="FP64", shape=()), ModelOutput(name="place", datatype="INT64", shape=())),
)


class Model:
    """Doubles; fails on 13; tells at which place of the micro-batch a row stood."""

    def __init__(self, batch_rows: int) -> None:
        self.batch_rows = batch_rows
        self.calls = 0

    def run(self, inputs: Mapping[str, Any], parameters: Mapping[str, Any]) -> dict[str, Any]:
        self.calls += 1
        values = inputs["x"]
        assert values.shape == (self.batch_rows,)
        assert not np.isnan(values).any()
        if (values == 13).any():
            raise EngineFailed("thirteen")
        return {"y": values * 2, "place": np.arange(self.batch_rows)}

    def close(self) -> None: ...


def shard(values: list[float | None]) -> bytes:
    return encode_shard(pa.table({"id": pa.array(range(100, 100 + len(values))), "x": pa.array(values, pa.float64())}))


values = st.lists(st.sampled_from([1.0, 2.5, 13.0, None, float("nan")]), min_size=1, max_size=12)


@settings(max_examples=60)
@given(values, st.integers(1, 5))
def test_every_good_row_is_computed_at_its_own_place(items: list[float | None], batch_rows: int) -> None:
    good = [row for row, value in enumerate(items) if value is not None and not np.isnan(value) and value != 13]
    fine = [row for row, value in enumerate(items) if value is not None and not np.isnan(value)]
    model = Model(batch_rows)
    blocks = [
        fine_in
        for start in range(0, len(items), batch_rows)
        if (fine_in := [r for r in fine if start <= r < start + batch_rows])
    ]
    if any(not any(row in good for row in block) for block in blocks):
        with pytest.raises(EngineFailed, match="thirteen"):
            run_shard(model, DESCRIPTION, shard(items), batch_rows, {})
        return
    output = run_shard(model, DESCRIPTION, shard(items), batch_rows, {})
    table = decode_shard(output.data)
    assert table.schema.names == ["id", "y", "place"]
    assert table.column("id").to_pylist() == [100 + row for row in good]
    assert table.column("y").to_pylist() == [items[row] * 2 for row in good]
    assert table.column("place").to_pylist() == [row % batch_rows for row in good]
    assert [error.row for error in output.errors] == [row for row in range(len(items)) if row not in good]
    assert output.rows == len(good)


def test_a_shard_without_a_good_row_has_the_same_columns() -> None:
    output = run_shard(Model(4), DESCRIPTION, shard([None, None]), 4, {})
    full = run_shard(Model(4), DESCRIPTION, shard([1.0]), 4, {})
    assert decode_shard(output.data).schema == decode_shard(full.data).schema
    assert output.rows == 0 and len(output.errors) == 2


def test_row_errors_are_bounded_in_number_and_length() -> None:
    class Wordy(Model):
        def run(self, inputs: Mapping[str, Any], parameters: Mapping[str, Any]) -> dict[str, Any]:
            if (inputs["x"] == 13).any():
                raise EngineFailed("x" * 5000)
            return super().run(inputs, parameters)

    output = run_shard(Wordy(100), DESCRIPTION, shard([13.0, 1.0, *[None] * 1250]), 100, {})
    assert [error.row for error in output.errors] == [0, *range(2, 1001)] and output.rows == 1
    assert len(output.errors[0].reason) == 300
    assert output.errors[-1].reason.endswith("(and 251 more rows failed)")


def test_what_does_not_fit_the_model_is_named() -> None:
    with pytest.raises(InputError, match="takes 1 to 1024"):
        run_shard(Model(4), DESCRIPTION, shard([1.0]), 2000, {})
    with pytest.raises(InputError, match="not a shard"):
        run_shard(Model(4), DESCRIPTION, b"rubbish", 4, {})
    with pytest.raises(InputError, match="lacks the column 'x'"):
        run_shard(Model(4), DESCRIPTION, encode_shard(pa.table({"id": [1], "z": [1.0]})), 4, {})
    with pytest.raises(InputError, match="id column"):
        run_shard(Model(1), DESCRIPTION, encode_shard(pa.table({"y": [1], "x": [1.0]})), 1, {})


def test_a_model_that_loses_rows_fails() -> None:
    class Short(Model):
        def run(self, inputs: Mapping[str, Any], parameters: Mapping[str, Any]) -> dict[str, Any]:
            return {name: value[:1] for name, value in super().run(inputs, parameters).items()}

    with pytest.raises(EngineFailed, match="expected 4 rows"):
        run_shard(Short(4), DESCRIPTION, shard([1.0]), 4, {})
