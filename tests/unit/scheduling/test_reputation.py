"""Slow to earn, quick to lose, forgotten with time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dim_pipelines.scheduling.reputation import (
    BAD_HALF_LIFE_MS,
    DAY_MS,
    EARN_MS,
    GOOD_HALF_LIFE_MS,
    MOST_POINTS,
    Reputation,
    Seen,
    add,
    aged,
    explain,
    score,
)

NOW = 1_800_000_000_000
reports = st.lists(
    st.tuples(
        st.builds(Seen, st.integers(0, 10_000), st.integers(0, 100), st.integers(0, 100), st.integers(0, 9)),
        st.integers(-DAY_MS, 30 * DAY_MS),
    ),
    max_size=30,
)


def after(count: int, seen: Seen, every_ms: int = EARN_MS, start: Reputation | None = None) -> tuple[Reputation, int]:
    reputation, now = start or Reputation(), NOW
    for _ in range(count):
        now += every_ms
        reputation = add(reputation, seen, now)
    return reputation, now


def test_a_stranger_stands_in_the_middle() -> None:
    assert score(Reputation(), NOW) == 0.5
    assert explain(Reputation(), NOW) == "0.50: no work of it was seen"


def test_one_failure_takes_what_many_good_half_minutes_gave() -> None:
    good, now = after(20, Seen(good=100))
    assert 0.85 < score(good, now) < 0.95
    failed = add(good, Seen(bad=1, last="the engine failed"), now)
    assert score(failed, now) < score(after(8, Seen(good=100))[0], now)
    again, later = after(10, Seen(good=100), start=failed)
    assert score(again, later) < score(good, now)
    assert "the engine failed" in explain(failed, now)


def test_lateness_counts_less_than_failure() -> None:
    good, now = after(20, Seen(good=100))
    late, bad = add(good, Seen(late=1), now), add(good, Seen(bad=1), now)
    assert score(bad, now) < score(late, now) < score(good, now)


def test_many_tasks_at_once_and_many_reports_at_once_earn_no_more() -> None:
    slow, _ = after(1, Seen(good=10))
    fast, _ = after(1, Seen(good=100_000))
    assert slow.good == fast.good == 1.0
    assert after(100, Seen(good=1000), every_ms=EARN_MS // 100)[0].good <= 2.0
    assert after(1, Seen(good=5))[0].good == 0.5


def test_points_fade_and_failures_fade_sooner() -> None:
    both = Reputation(good=8.0, bad=8.0, late=8.0, at_ms=NOW)
    left = aged(both, NOW + GOOD_HALF_LIFE_MS)
    assert (left.good, left.at_ms) == (4.0, NOW + GOOD_HALF_LIFE_MS)
    assert left.bad == left.late == 8.0 * 0.5 ** (GOOD_HALF_LIFE_MS / BAD_HALF_LIFE_MS)
    assert abs(score(both, NOW + 365 * DAY_MS) - 0.5) < 0.001


def test_a_clock_that_went_back_changes_nothing() -> None:
    reputation = Reputation(good=3.0, bad=1.0, at_ms=NOW)
    assert aged(reputation, NOW - DAY_MS) == reputation
    assert add(reputation, Seen(good=10), NOW - DAY_MS).good == 3.0


def test_speed_follows_what_was_seen_lately() -> None:
    first = add(Reputation(), Seen(good=1, rows=100, seconds=1.0), NOW)
    assert first.rows_per_s == 100.0
    second = add(first, Seen(good=1, rows=200, seconds=1.0), NOW + EARN_MS)
    assert 100.0 < (second.rows_per_s or 0) < 200.0
    assert add(second, Seen(bad=1, seconds=9.0), NOW).rows_per_s == second.rows_per_s
    assert "rows/s" in explain(second, NOW)


@given(reports)
def test_it_stays_within_bounds_whatever_comes(history: list[tuple[Seen, int]]) -> None:
    reputation, now = Reputation(), NOW
    for seen, passed in history:
        now += passed
        reputation = add(reputation, seen, now)
        assert 0.0 < score(reputation, now) < 1.0
        assert 0.0 <= reputation.good <= MOST_POINTS
        assert reputation.bad >= 0.0 and reputation.late >= 0.0


@given(reports, st.integers(1, 5))
def test_a_failure_never_raises_the_score_and_good_work_never_lowers_it(
    history: list[tuple[Seen, int]], bad: int
) -> None:
    reputation, now = Reputation(), NOW
    for seen, passed in history:
        now += passed
        reputation = add(reputation, seen, now)
    now += EARN_MS
    assert score(add(reputation, Seen(bad=bad), now), now) < score(reputation, now)
    assert score(add(reputation, Seen(late=bad), now), now) < score(reputation, now)
    assert score(add(reputation, Seen(good=10), now), now) >= score(reputation, now)
