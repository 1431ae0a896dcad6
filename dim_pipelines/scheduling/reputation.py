"""What a node's past work says of it: slow to earn, quick to lose, forgotten with time.

Kept per node and numerics class, as decayed counts. A failure counts in full at once; good work counts by time, not by
tasks: ten thousand small tasks in a minute say no more than ten. Nothing here is known to be right in some absolute
sense; the score only has to order nodes, and a newcomer stands in the middle.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

DAY_MS: Final = 86_400_000
GOOD_HALF_LIFE_MS: Final = 7 * DAY_MS
BAD_HALF_LIFE_MS: Final = 2 * DAY_MS
"""Failures are forgotten sooner than good work: nodes are mended."""
EARN_MS: Final = 30_000
"""Good work earns one point in this time, at most."""
EARN_TASKS: Final = 10
"""How many good tasks make a full point."""
MOST_AT_ONCE: Final = 5
"""How many failures one report counts, at most: one broken disk fails every task at once."""
MOST_POINTS: Final = 200.0
"""Points that good work can collect, at most: no past is good enough for a free fall later."""

_PRIOR: Final = 2.0
_BAD_WEIGHT: Final = 6.0
_LATE_WEIGHT: Final = 1.5
_SPEED_SHARE: Final = 0.3


@dataclass(frozen=True, slots=True)
class Reputation:
    """What is known of a node in a numerics class.

    Attributes:
        good, bad, late: decayed points, at `at_ms`.
        rows_per_s: rows a second as run workers saw it lately; None before the first.
        last: the newest thing that lowered it, for people.
        at_ms: Unix time in milliseconds for which the points hold; 0 for a stranger.
    """

    good: float = 0.0
    bad: float = 0.0
    late: float = 0.0
    rows_per_s: float | None = None
    last: str = ""
    at_ms: int = 0


@dataclass(frozen=True, slots=True)
class Seen:
    """What a run worker saw of a node since its last report.

    Attributes:
        good: outputs that were accepted.
        bad: tasks that failed by the node's fault, wrong outputs, lost sessions.
        late: tasks that another node finished first, and silences.
        rows: rows of the accepted outputs.
        seconds: for how long it was used.
        last: the newest of `bad` and `late`, for people.
    """

    good: int = 0
    bad: int = 0
    late: int = 0
    rows: int = 0
    seconds: float = 0.0
    last: str = ""


def aged(reputation: Reputation, now_ms: int) -> Reputation:
    """Give the reputation with the points that are left now; a clock that went back leaves all of them."""
    passed = max(0, now_ms - reputation.at_ms) if reputation.at_ms else 0
    bad = 0.5 ** (passed / BAD_HALF_LIFE_MS)
    return Reputation(
        good=reputation.good * 0.5 ** (passed / GOOD_HALF_LIFE_MS),
        bad=reputation.bad * bad,
        late=reputation.late * bad,
        rows_per_s=reputation.rows_per_s,
        last=reputation.last,
        at_ms=max(now_ms, reputation.at_ms),
    )


def add(reputation: Reputation, seen: Seen, now_ms: int) -> Reputation:
    """Give the reputation after a report."""
    passed = now_ms - reputation.at_ms if reputation.at_ms else EARN_MS
    earned = min(1.0, seen.good / EARN_TASKS, max(0.0, passed / EARN_MS))
    left = aged(reputation, now_ms)
    speed = left.rows_per_s
    if seen.rows and seen.seconds > 0:
        fresh = seen.rows / seen.seconds
        speed = fresh if speed is None else speed + _SPEED_SHARE * (fresh - speed)
    return Reputation(
        good=min(MOST_POINTS, left.good + earned),
        bad=left.bad + min(seen.bad, MOST_AT_ONCE),
        late=left.late + min(seen.late, MOST_AT_ONCE),
        rows_per_s=speed,
        last=seen.last or left.last,
        at_ms=left.at_ms,
    )


def score(reputation: Reputation, now_ms: int) -> float:
    """Give 0 to 1; a stranger has 0.5."""
    left = aged(reputation, now_ms)
    against = _BAD_WEIGHT * left.bad + _LATE_WEIGHT * left.late
    return (left.good + _PRIOR) / (left.good + 2 * _PRIOR + against)


def explain(reputation: Reputation, now_ms: int) -> str:
    """Say in one line where the score comes from."""
    left = aged(reputation, now_ms)
    if not reputation.at_ms:
        return "0.50: no work of it was seen"
    speed = "" if left.rows_per_s is None else f", {left.rows_per_s:,.0f} rows/s lately"
    last = f"; last: {left.last}" if left.last else ""
    return (
        f"{score(reputation, now_ms):.2f}: {left.good:.1f} points for good work, {left.bad:.1f} for failures, "
        f"{left.late:.1f} for lateness{speed}{last}"
    )
