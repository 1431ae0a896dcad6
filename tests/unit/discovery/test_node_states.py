"""What moves a node from state to state, with a clock of the test's own."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dim_pipelines.discovery.node_states import (
    FAREWELL,
    FLAP_PENALTY,
    HALF_LIFE_MS,
    LISTENING_GRACE_MS,
    LONGEST_PENALTY,
    REUSE_BELOW,
    SUPPRESS_ABOVE,
    Attached,
    Detached,
    Event,
    Healthy,
    LostByRun,
    NodeStatus,
    RecordAccepted,
    RecordRefused,
    Revoked,
    Tick,
    Unhealthy,
    penalty_at,
    step,
)

NOW = 1_800_000_000_000
LIFE = 180_000


def verified(now: int = NOW) -> NodeStatus:
    return step(NodeStatus(since_ms=now), RecordAccepted(now + LIFE), now)


def eligible(now: int = NOW) -> NodeStatus:
    return step(verified(now), Healthy(now), now)


def test_a_node_comes_in_by_its_record_and_then_by_its_answer() -> None:
    seen = NodeStatus(since_ms=NOW)
    assert seen.state == "SEEN"
    assert step(seen, Healthy(NOW), NOW) is seen  # an answer without a record is worth nothing
    assert verified().state == "VERIFIED" and "answered" in verified().reason
    good = step(verified(), Healthy(NOW + 5), NOW + 7)
    assert (good.state, good.reason, good.since_ms, good.healthy_ms) == ("ELIGIBLE", "", NOW + 7, NOW + 7)


def test_a_lost_node_is_suspect_until_it_answers_a_later_check() -> None:
    lost = step(eligible(), Unhealthy("no answer in 2 s"), NOW + 6000)
    assert (lost.state, lost.reason, lost.since_ms) == ("SUSPECT", "no answer in 2 s", NOW + 6000)
    assert step(lost, Healthy(NOW + 5999), NOW + 6100) is lost  # that check began before it was lost
    assert step(lost, Healthy(NOW + 6000), NOW + 6100).state == "ELIGIBLE"
    assert step(eligible(), Detached(), NOW).state == "SUSPECT"
    assert step(step(eligible(), Detached(), NOW), Attached(), NOW + 1).state == "ELIGIBLE"
    assert step(eligible(), LostByRun("the session broke"), NOW).reason == "the session broke"


def test_a_suspect_node_is_gone_at_its_records_end() -> None:
    lost = step(eligible(), Unhealthy("silent"), NOW + 6000)
    assert step(lost, Tick(), NOW + LIFE - 1) is lost
    gone = step(lost, Tick(), NOW + LIFE)
    assert gone.state == "GONE" and "ended" in gone.reason and "silent" in gone.reason
    assert step(gone, Healthy(NOW + LIFE), NOW + LIFE) is gone
    back = step(gone, RecordAccepted(NOW + 3 * LIFE), NOW + 2 * LIFE)
    assert back.state == "VERIFIED" and back.expires_ms == NOW + 3 * LIFE


def test_good_nodes_outlive_an_outage_of_whoever_listens_but_lost_ones_do_not() -> None:
    """Nobody listened while the records ended: the nodes get the time of a publication to say that they are there."""
    restarted = NOW + 3 * LIFE
    tick = Tick(restarted)
    good = eligible()
    assert step(good, tick, restarted) is good
    assert step(good, tick, restarted + LISTENING_GRACE_MS - 1) is good
    assert step(good, tick, restarted + LISTENING_GRACE_MS).state == "GONE"
    lost = step(good, Unhealthy("silent"), restarted + 8000)
    assert step(lost, tick, restarted + 8001).state == "GONE"


def test_a_refused_record_moves_nothing_but_is_told_of_a_node_that_has_none() -> None:
    seen = step(NodeStatus(), RecordRefused("forged"), NOW)
    assert (seen.state, seen.reason) == ("SEEN", "forged")
    for status in (verified(), eligible(), step(eligible(), Unhealthy("x"), NOW), step(eligible(), Revoked("x"), NOW)):
        assert step(status, RecordRefused("forged"), NOW) is status


def test_a_renewed_record_keeps_the_state_and_a_moved_one_asks_for_an_answer() -> None:
    renewed = step(eligible(), RecordAccepted(NOW + 2 * LIFE), NOW + 60_000)
    assert renewed == replace(eligible(), expires_ms=NOW + 2 * LIFE)
    moved = step(eligible(), RecordAccepted(NOW + 2 * LIFE, moved=True), NOW + 60_000)
    assert moved.state == "VERIFIED" and moved.penalty == 0


def test_a_node_that_says_farewell_gets_no_new_work_though_it_still_answers() -> None:
    for status in (NodeStatus(since_ms=NOW), verified(), eligible(), step(eligible(), Unhealthy("silent"), NOW)):
        left = step(status, RecordAccepted(NOW + LIFE, leaving=True), NOW + 10)
        assert (left.state, left.reason, left.penalty) == ("SUSPECT", FAREWELL, status.penalty)
        assert step(left, Healthy(NOW + 20), NOW + 20) is left
        assert step(left, Unhealthy("no answer in 2 s"), NOW + 20) is left
        assert step(left, Attached(), NOW + 20) is left
        assert step(left, Tick(), NOW + LIFE).state == "GONE"
        again = step(left, RecordAccepted(NOW + 2 * LIFE, moved=True), NOW + 30)
        assert again.state == "VERIFIED" and step(again, Healthy(NOW + 31), NOW + 31).state == "ELIGIBLE"


def test_a_revoked_node_is_gone_at_once() -> None:
    for status in (NodeStatus(), verified(), eligible()):
        gone = step(status, Revoked("stolen"), NOW + 1)
        assert (gone.state, gone.reason) == ("GONE", "revoked: stolen")


def flap(status: NodeStatus, at: int, event: Event | None = None) -> NodeStatus:
    lost = step(status, event or Unhealthy("silent"), at)
    return step(lost, Healthy(at + 1), at + 1)


def test_a_flapping_node_is_kept_out_until_it_has_stayed_for_a_while() -> None:
    status, at = eligible(), NOW
    for _ in range(3):
        at += 1000
        status = flap(status, at)
        assert status.state == "ELIGIBLE"
    status = flap(status, at + 1000)
    assert status.state == "SUSPECT" and status.suppressed and "comes and goes" in status.reason
    left = penalty_at(status, at + 1001)
    assert SUPPRESS_ABOVE < left <= 4 * FLAP_PENALTY
    # It answers all the time; about two half lives later it is taken again, with what is left of its penalty.
    asked = range(at + 2000, at + 2000 + 4 * HALF_LIFE_MS, 3000)
    taken = next(now for now in asked if step(status, Healthy(now), now).state == "ELIGIBLE")
    assert penalty_at(status, taken) < REUSE_BELOW <= penalty_at(status, taken - 3000)
    assert not step(status, Healthy(taken), taken).suppressed


def test_the_word_of_a_run_worker_counts_half() -> None:
    status, at = eligible(), NOW
    for number in range(1, 20):
        status = flap(status, at + number, LostByRun("the session broke"))
        if status.suppressed:
            break
    assert number == 7  # 7 x 500 > 3,000


@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                [
                    RecordAccepted(NOW + LIFE),
                    RecordAccepted(NOW + LIFE, leaving=True),
                    RecordRefused("no"),
                    Healthy(NOW + 10**9),
                    Unhealthy("silent"),
                    Attached(),
                    Detached(),
                    LostByRun("broke"),
                    Tick(),
                    Revoked("stolen"),
                ]
            ),
            st.integers(0, 100_000),
        ),
        max_size=60,
    )
)
def test_whatever_happens_only_a_valid_record_and_a_later_answer_make_a_node_eligible(
    happenings: list[tuple[Event, int]],
) -> None:
    status, now = NodeStatus(since_ms=NOW), NOW
    for event, passed in happenings:
        now += passed
        before, status = status, step(status, event, now)
        if status.state == "ELIGIBLE" and before.state != "ELIGIBLE":
            assert isinstance(event, Healthy | Attached) and before.state in ("VERIFIED", "SUSPECT")
            assert not status.suppressed
        if status.state != before.state:
            assert status.since_ms == now
        if before.state == "GONE" and status.state != "GONE":
            assert isinstance(event, RecordAccepted)
        assert 0 <= status.penalty <= LONGEST_PENALTY
        assert status == before or status is not before


@pytest.mark.parametrize("event", [Unhealthy("again"), Healthy(NOW), Tick(), RecordRefused("no")])
def test_what_changes_nothing_gives_the_same_status_back(event: Event) -> None:
    status = eligible()
    if isinstance(event, Unhealthy):
        status = step(status, event, NOW)
    assert step(status, event, NOW) is status or isinstance(event, Healthy)
    assert step(eligible(), Healthy(NOW), NOW) == eligible()
