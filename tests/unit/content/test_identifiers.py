from __future__ import annotations

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from dim_pipelines.content.identifiers import SeenIds


@given(st.lists(st.lists(st.integers(-50, 200), max_size=12), max_size=12), st.booleans())
def test_the_first_id_that_comes_again_is_found(batches: list[list[int]], as_text: bool) -> None:
    seen, known = SeenIds(), set[int]()
    for batch in batches:
        column = pa.array([str(row) for row in batch], pa.string()) if as_text else pa.array(batch, pa.int64())
        expected = next((at for at, row in enumerate(batch) if row in known or row in batch[:at]), None)
        assert seen.add(column) == expected
        if expected is not None:
            return
        known.update(batch)


def test_texts_that_differ_in_zeros_at_their_end_are_two() -> None:
    assert SeenIds().add(pa.array(["a", "a\0", "a\0\0", ""])) is None
