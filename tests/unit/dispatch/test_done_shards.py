"""The table of done shards."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dim_pipelines.dispatch.done_shards import MAX_SHARDS, DoneShards
from dim_pipelines.dispatch.shard_inputs import ShardInputs
from dim_pipelines.domain.cid import RAW, Cid
from dim_pipelines.domain.events import ShardDone, Task, Usage
from dim_pipelines.errors import InputError


def cid(number: int) -> Cid:
    return Cid.of(RAW, b"%d" % number)


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 9), st.sampled_from("abc"), st.booleans())))
def test_it_is_a_dictionary_in_which_the_first_word_stays(steps: list[tuple[int, int, str, bool]]) -> None:
    table, model = DoneShards(), dict[int, tuple[int, str]]()
    for shard, rows, node, drop in steps:
        if drop:
            table.drop(shard)
            model.pop(shard, None)
        else:
            assert table.add(shard, cid(shard + rows), rows, node) is (shard not in model)
            model.setdefault(shard, (rows, node))
    assert list(table) == sorted(model)
    assert len(table) == len(model)
    for shard, (rows, node) in model.items():
        assert shard in table
        assert table.done(shard) == ShardDone(shard, cid(shard + rows), rows, node, Usage())
    counts = {node: [name for _, name in model.values()].count(node) for node in "abc"}
    assert table.per_node() == {node: count for node, count in counts.items() if count}


def test_a_position_beyond_all_reason_is_refused() -> None:
    with pytest.raises(InputError, match="beyond"):
        DoneShards().add(MAX_SHARDS, cid(0), 1, "a")


def test_inputs_make_tasks() -> None:
    inputs = ShardInputs()
    inputs.append(cid(1), 5)
    inputs.append(cid(2), 3)
    assert len(inputs) == 2
    assert inputs.task(1, 4) == Task(1, 0, (cid(2),), 3, 4)
