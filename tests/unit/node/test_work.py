from __future__ import annotations

from collections.abc import Sequence

from dim_pipelines.domain.cid import RAW, Cid
from dim_pipelines.domain.events import RowError, TaskDone, TaskFailed
from dim_pipelines.node.frames import MAX_REASON, MAX_ROW_ERRORS
from dim_pipelines.node.work import MAX_OUTCOME_BYTES, MAX_OUTCOMES, messages
from dim_pipelines.wire.codec import outcome_to_wire
from dim_pipelines.wire.v1 import node_pb2


def size(outcomes: Sequence[TaskDone | TaskFailed]) -> int:
    wired = [outcome_to_wire(outcome) for outcome in outcomes]
    return node_pb2.NodeMessage(outcomes=node_pb2.Outcomes(outcomes=wired)).ByteSize()


def test_outcomes_are_parted_by_number_and_by_bytes() -> None:
    errors = tuple(RowError(row, "\U0001f600" * MAX_REASON) for row in range(MAX_ROW_ERRORS))
    large = [TaskDone(n, 0, 1, Cid.of(RAW, b""), 3, row_errors=errors) for n in range(5)]
    parted = list(messages(large))
    assert [len(part) for part in parted] == [1] * 5 and [one for part in parted for one in part] == large
    assert all(size(part) <= MAX_OUTCOME_BYTES for part in parted)
    small = [TaskFailed(n, 0, 1, "engine_failed", "no", True) for n in range(MAX_OUTCOMES + 1)]
    assert [len(part) for part in messages(small)] == [MAX_OUTCOMES, 1]
    mixed: list[TaskDone | TaskFailed] = [*small[:10], large[0], *small[10:20], large[1]]
    assert [one for part in messages(mixed) for one in part] == mixed
    assert all(size(part) <= MAX_OUTCOME_BYTES for part in messages(mixed)) and list(messages([])) == []
