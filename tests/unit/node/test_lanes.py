from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from dim_pipelines.domain.cid import RAW, Cid
from dim_pipelines.domain.events import Task
from dim_pipelines.errors import ContentNotFound
from dim_pipelines.node.lanes import FRAME_BYTES, FRAME_TASKS, Item, Lane
from dim_pipelines.node.model_cache import CachedModel
from dim_pipelines.node.plans import ReadyStep

CID = Cid.of(RAW, b"")


def lane(steps: int = 2) -> Lane:
    models = [CachedModel(Cid.of(RAW, bytes([n])), Path(), cast(Any, SimpleNamespace()), 0) for n in range(steps)]
    return Lane("o", 1, [ReadyStep(model, {}, 4) for model in models], lambda computed: None)


def item(shard: int, step: int = 0, data: bytes | None = b"x") -> Item:
    return Item(Task(shard, step, (CID,), 1), data)


def test_the_first_frame_holds_one_task_and_short_ones_go_together() -> None:
    made = lane()
    made.waiting.extend(item(n) for n in range(100))
    assert len(made.take()) == 1
    made.took(1000.0)
    assert len(made.take()) == 1
    made.took(1.0)
    assert [each.task.shard for each in made.take()] == list(range(2, 22))
    made.took(0.01)
    assert len(made.take()) == FRAME_TASKS


def test_a_frame_is_one_step_in_order_of_what_is_here() -> None:
    made = lane()
    made.took(1.0)
    made.waiting.extend([item(0), item(1), item(2, 1), item(3)])
    assert [each.task.shard for each in made.take()] == [0, 1]
    assert [each.task.shard for each in made.take()] == [2]
    made.waiting.extend([item(4), item(5, data=None)])
    assert [each.task.shard for each in made.take()] == [3, 4]
    assert made.candidate() is None
    made.waiting[0].error = ContentNotFound()
    assert made.candidate() is not None


def test_large_shards_and_suspects_go_alone() -> None:
    made = lane()
    made.took(1.0)
    made.waiting.extend(item(n, data=bytes(FRAME_BYTES // 2 + 1)) for n in range(2))
    assert len(made.take()) == 1 and len(made.take()) == 1
    suspect = item(9)
    suspect.alone = True
    made.waiting.extend([item(8), suspect, item(10)])
    assert [[each.task.shard for each in made.take()] for _ in range(3)] == [[8], [9], [10]]


def test_cancelled_tasks_are_passed_over() -> None:
    made = lane()
    made.took(1.0)
    made.waiting.extend(item(n) for n in range(4))
    made.waiting[0].cancelled = made.waiting[2].cancelled = True
    assert made.candidate() is not None
    taken = made.take()
    assert [each.task.shard for each in taken] == [1, 3] and made.candidate() is None
    made.put_back(taken)
    assert [each.task.shard for each in made.waiting] == [1, 3]


def test_the_mean_forgets_slow_first_tasks_at_once() -> None:
    made = lane()
    made.took(1000.0)
    made.took(2.0)
    assert made.mean_ms == 2.0
    made.took(3.0)
    assert made.mean_ms is not None and 2.0 < made.mean_ms < 3.0
