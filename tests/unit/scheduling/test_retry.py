"""What follows from a failure."""

from __future__ import annotations

import pytest

from dim_pipelines.scheduling.retry import BUSY_DELAY_S, Action, Failure, RetryDecision, RetryStrategy, is_own_fault

STRATEGY = RetryStrategy(max_attempts=3)


def decide(
    code: str, *, spent: int = 0, content: int = 0, others: bool = True, handed_back: bool = False
) -> RetryDecision:
    failure = Failure(code, "why", handed_back)
    return STRATEGY.decide(failure, spent=spent, content_failures=content, other_nodes=others)


@pytest.mark.parametrize("spent", [0, 2, 99])
def test_a_task_that_was_never_started_costs_nothing(spent: int) -> None:
    assert decide("engine_failed", spent=spent, handed_back=True) == RetryDecision(Action.RETRY, 0, True, 0.0)
    assert decide("cancelled", spent=spent) == RetryDecision(Action.RETRY, 0, True, BUSY_DELAY_S)
    assert decide("node_busy", spent=spent) == RetryDecision(Action.RETRY, 0, True, BUSY_DELAY_S)
    assert decide("quota_exceeded", spent=spent).cost == 0


@pytest.mark.parametrize("code", ["engine_failed", "node_unreachable", "content_mismatch", "forbidden", "who knows"])
def test_a_nodes_failure_is_tried_elsewhere_until_the_cap(code: str) -> None:
    assert decide(code) == RetryDecision(Action.RETRY, 1, True)
    assert decide(code, spent=1) == RetryDecision(Action.RETRY, 1, True)
    assert decide(code, spent=2) == RetryDecision(Action.STOP, 1)


def test_bad_rows_are_believed_when_a_second_node_says_so_or_there_is_none() -> None:
    assert decide("input").action is Action.RETRY
    assert decide("input", content=1).action is Action.STOP
    assert decide("input", others=False).action is Action.STOP


def test_a_stale_epoch_stops_the_batch() -> None:
    assert decide("stale_epoch").action is Action.STOP


@pytest.mark.parametrize(
    ("failure", "own"),
    [
        (Failure("engine_failed", "why"), True),
        (Failure("node_unreachable", "why"), True),
        (Failure("engine_failed", "why", handed_back=True), False),
        (Failure("input", "why"), False),
        (Failure("node_busy", "why"), False),
        (Failure("stale_epoch", "why"), False),
    ],
)
def test_only_what_a_node_did_itself_speaks_against_it(failure: Failure, own: bool) -> None:
    assert is_own_fault(failure) is own
