"""What the report says of rows that could not be used, whatever the size of their table."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from dim_pipelines.assets import report
from dim_pipelines.assets.report import SHOWN_ERRORS, read_errors
from dim_pipelines.content.memory import MemoryContentStore
from dim_pipelines.content.unixfs import add_bytes


def test_a_large_table_of_dead_rows_is_named_by_its_cid_only(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "MAX_ERROR_TABLE_BYTES", 10)
    machine.errors = machine.portal.call(add_bytes(machine.store, b"more than ten bytes"))
    (made,) = machine.materialize().asset_materializations_for_node("report")

    assert made.metadata["dim/errors_cid"].value == str(machine.errors)
    assert "dim/errors" not in made.metadata


@pytest.mark.parametrize("rows", [1, 4, 25])
async def test_only_the_first_dead_rows_are_shown(rows: int) -> None:
    store = MemoryContentStore()
    table = pa.table({"row": list(range(rows)), "reason": ["bad"] * rows, "file": ["x.csv"] * rows})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=4)
    shown = await read_errors(store, await add_bytes(store, sink.getvalue().to_pybytes()))
    assert shown == table.to_pylist()[:SHOWN_ERRORS]
