"""What a batch counts of its nodes' work."""

from __future__ import annotations

from dim_pipelines.dispatch.tallies import Tallies
from dim_pipelines.scheduling.reputation import Seen


def test_counts_begin_anew_when_they_are_taken() -> None:
    now = 0.0
    tallies = Tallies(lambda: now)
    assert tallies.take() == {}
    for name in ("a", "b", "idle"):
        tallies.begin(name)
    now = 1.0
    tallies.good("a", 10)
    tallies.late("b", "slow")
    now = 2.0
    tallies.good("a", 5)
    tallies.bad("b", "broken")
    assert tallies.take() == {"a": Seen(2, 0, 0, 15, 2.0, ""), "b": Seen(0, 1, 1, 0, 2.0, "broken")}
    now = 5.0
    tallies.good("a", 1)
    assert tallies.take() == {"a": Seen(1, 0, 0, 1, 3.0, "")}
