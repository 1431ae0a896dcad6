"""The relay's rules: who may have how many tunnels, and whose session is whose."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dim_pipelines.domain.roster import Limits
from dim_pipelines.errors import DimError, Forbidden, NodeBusy, NodeUnreachable, ProtocolError, QuotaExceeded
from dim_pipelines.orchestrator.link_table import (
    IDLE_S,
    MAX_CALLER_STREAMS,
    MAX_NODE_TUNNELS,
    PULSE_S,
    SILENT_S,
    STALL_S,
    Bucket,
    Flow,
    LinkTable,
    standstill,
)


def table(**limits: Limits) -> LinkTable:
    return LinkTable(lambda name: limits.get(name, Limits()))


def test_a_tunnel_needs_an_attached_node() -> None:
    links = table()
    with pytest.raises(NodeUnreachable, match="node n is not attached here"):
        links.connect("c", "n", 0)
    link, replaced = links.attach("n", b"", 0)
    assert replaced is None and links.attached == {"n"}
    session, found = links.connect("c", "n", 0)
    assert found is link and len(session.id) == 16 and links.tunnels == 1
    links.release(session)
    assert links.detach(link) and links.tunnels == 0
    with pytest.raises(NodeUnreachable):
        links.connect("c", "n", 0)


def test_a_session_is_claimed_once_and_by_its_node() -> None:
    links = table()
    links.attach("n", b"", 0)
    links.attach("other", b"", 0)
    session, _ = links.connect("c", "n", 0)
    for dialler, id in (("other", session.id), ("n", bytes(16)), ("c", session.id)):
        with pytest.raises(Forbidden, match="no caller waits"):
            links.claim(dialler, id)
    assert links.claim("n", session.id) == session
    with pytest.raises(Forbidden):
        links.claim("n", session.id)
    links.release(session)


def test_a_session_that_was_given_up_cannot_be_claimed() -> None:
    links = table()
    links.attach("n", b"", 0)
    session, _ = links.connect("c", "n", 0)
    links.release(session)
    with pytest.raises(Forbidden):
        links.claim("n", session.id)


def test_the_newest_attachment_is_the_living_one() -> None:
    links = table()
    old, _ = links.attach("n", b"1", 0)
    new, replaced = links.attach("n", b"2", 1)
    assert replaced is old
    assert not links.detach(old) and links.attached == {"n"}
    assert links.detach(new) and not links.attached


@pytest.mark.parametrize(
    ("given", "most"), [(None, MAX_NODE_TUNNELS), (2, 2), (0, 0), (1000, MAX_NODE_TUNNELS)]
)  # the roster may give less than the orchestrator's own bound, never more
def test_tunnels_of_a_node_are_capped(given: int | None, most: int) -> None:
    links = table(n=Limits(max_sessions=given))
    link, _ = links.attach("n", b"", 0)
    links.attach("other", b"", 0)
    assert link.max_sessions == most
    sessions = [links.connect("c", "n", 0)[0] for _ in range(most)]
    with pytest.raises(NodeBusy, match=f"has {most} tunnels, its limit"):
        links.connect("c", "n", 0)
    links.connect("c", "other", 0)
    if sessions:
        links.release(sessions[0])
        links.connect("c", "n", 0)


def test_tunnels_are_capped_in_all() -> None:
    links = LinkTable(lambda name: Limits(), max_tunnels=2)
    for node in ("a", "b", "c"):
        links.attach(node, b"", 0)
    first, _ = links.connect("x", "a", 0)
    links.connect("x", "b", 0)
    with pytest.raises(QuotaExceeded, match="the orchestrator has 2 tunnels"):
        links.connect("x", "c", 0)
    links.release(first)
    links.connect("x", "c", 0)


def test_streams_of_a_member_are_capped_and_others_are_not_touched() -> None:
    links = table(few=Limits(max_streams=2))
    links.open_stream("few", 0)
    links.open_stream("few", 0)
    with pytest.raises(QuotaExceeded, match="2 streams are open, the limit is 2"):
        links.open_stream("few", 0)
    links.open_stream("other", 0)
    links.close_stream("few")
    links.open_stream("few", 0)
    for _ in range(MAX_CALLER_STREAMS):
        links.open_stream("many", 0)
    with pytest.raises(QuotaExceeded, match="the limit is 256"):
        links.open_stream("many", 0)


def test_streams_that_are_opened_and_closed_too_fast_are_refused() -> None:
    links, refused = table(), 0
    for number in range(10_000):
        try:
            links.open_stream("mad", number / 10_000)  # in one second
        except QuotaExceeded:
            refused += 1
        else:
            links.close_stream("mad")
    assert 10_000 - refused <= 256 + 33
    links.open_stream("calm", 1)
    links.open_stream("mad", 10)  # and it is forgiven


def test_one_node_is_not_asked_for_tunnels_without_end() -> None:
    links = table()
    links.attach("n", b"", 0)
    links.attach("other", b"", 0)
    for _ in range(64):
        links.release(links.connect("c", "n", 0)[0])
    with pytest.raises(NodeBusy, match="tunnels a second"):
        links.connect("c", "n", 0)
    assert links.tunnels == 0
    links.connect("c", "other", 0)
    links.connect("c", "n", 1)


def test_pulses_keep_a_link_and_a_flood_of_them_ends_it() -> None:
    link, _ = table().attach("n", b"", 0)
    for number in range(1, 100):
        assert not link.silent(number * PULSE_S)
        link.heard(number * PULSE_S)
    assert not link.silent(99 * PULSE_S + SILENT_S)
    assert link.silent(99 * PULSE_S + SILENT_S + 0.1)
    with pytest.raises(ProtocolError, match="flood"):
        for _ in range(100):
            link.heard(1000)


def test_a_bucket_never_holds_more_than_its_burst_and_a_clock_that_goes_back_fills_nothing() -> None:
    bucket = Bucket(2, 1)
    assert [bucket.take(100) for _ in range(3)] == [True, True, False]
    assert not bucket.take(0)
    assert not bucket.take(100.5)
    assert bucket.take(101.6)
    assert [bucket.take(10_000) for _ in range(3)] == [True, True, False]


def test_a_tunnel_that_stands_still_is_ended_with_the_reason() -> None:
    flows = Flow(0), Flow(0)
    assert not standstill(flows, IDLE_S)
    assert "nothing moved for 90 s" in standstill(flows, IDLE_S + 1)
    flows[1].moved = IDLE_S
    assert not standstill(flows, IDLE_S + 1)
    flows[0].waiting = IDLE_S  # the other direction lives, but this one's reader does not read
    flows[1].moved = IDLE_S + STALL_S
    assert not standstill(flows, IDLE_S + STALL_S)
    assert "the reader took nothing for 30 s" in standstill(flows, IDLE_S + STALL_S + 1)


@given(st.lists(st.tuples(st.sampled_from("acdr"), st.integers(0, 3)), max_size=60))
def test_counts_come_back_to_nothing_whatever_happens(steps: list[tuple[str, int]]) -> None:
    """Any sequence of attachments, tunnels, dials and ends keeps the caps, and leaves nothing behind."""
    clock = itertools.count()
    links = LinkTable(lambda name: Limits(max_sessions=2), max_tunnels=3)
    held, attached = [], {}
    for what, which in steps:
        node = f"n{which}"
        try:
            if what == "a":
                attached[node], _ = links.attach(node, b"", next(clock))
            elif what == "c":
                held.append(links.connect("c", node, next(clock))[0])
            elif what == "d" and held:
                links.claim(node, held[which % len(held)].id)
            elif what == "r" and held:
                links.release(held.pop(which % len(held)))
        except DimError:
            pass
        assert links.tunnels == len(held) <= 3
        assert all(count <= 2 for count in Counter(session.node for session in held).values())
        assert links.attached == set(attached)
    for session in held:
        links.release(session)
    assert links.tunnels == 0 and not links._waiting and not links._tunnels
