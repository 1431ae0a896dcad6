"""Which names are asked for when."""

from __future__ import annotations

from itertools import pairwise

from dim_pipelines.discovery.polling import LATE_MS, LONGEST_MS, POLL_MS, PollPlan

NOW = 1_800_000_000_000


def test_only_what_was_not_renewed_in_time_is_asked_for() -> None:
    plan = PollPlan()
    names = {"unknown": 0, "late": NOW + LATE_MS - 1, "fresh": NOW + LATE_MS}
    assert plan.due(names, NOW) == ["unknown", "late"]
    assert plan.due(names, NOW + POLL_MS - 1) == ["fresh"]
    assert plan.due({**names, "fresh": NOW + 10**6}, NOW + POLL_MS) == ["unknown", "late"]


def test_a_name_without_a_record_is_asked_for_ever_less_often_but_never_forgotten() -> None:
    plan, asked = PollPlan(), []
    for now in range(NOW, NOW + 600_000, 1000):
        if plan.due({"nobody": 0}, now):
            plan.missed("nobody")
            asked.append(now)
    pauses = [later - before for before, later in pairwise(asked)]
    assert pauses[:3] == [POLL_MS] * 3 and pauses[-1] == LONGEST_MS == max(pauses)
    plan.found("nobody")
    assert not plan.due({"nobody": 0}, asked[-1] + POLL_MS - 1) and plan.due({"nobody": 0}, asked[-1] + POLL_MS)


def test_who_waits_longest_comes_first_and_who_left_is_forgotten() -> None:
    plan = PollPlan()
    assert plan.due({"a": 0}, NOW) == ["a"]
    assert plan.due({"a": 0, "b": 0}, NOW + POLL_MS) == ["b", "a"]
    plan.missed("a")
    assert plan.due({}, NOW + POLL_MS) == []
    plan.missed("a")  # an answer that comes too late
    assert plan.due({"a": 0}, NOW + POLL_MS) == ["a"]


def test_a_clock_that_goes_back_stops_nothing() -> None:
    plan = PollPlan()
    plan.due({"a": 0}, NOW)
    assert plan.due({"a": 0}, NOW - 10 * POLL_MS) == ["a"]
