"""The rule that takes a node's record in or refuses it."""

from __future__ import annotations

from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from dim_pipelines.discovery import entry
from dim_pipelines.discovery.judgement import LONGEST_MS, SKEW_MS, Mark, Verdict, judge, mark_of
from dim_pipelines.discovery.record import LIFETIME_MS, name_of, read_node_record
from dim_pipelines.domain.roster import Revocation
from dim_pipelines.errors import AccessError, DiscoveryError, Forbidden, RecordExpired, RecordForged, RolledBack
from dim_pipelines.identity.keys import public_bytes
from dim_pipelines.identity.roster import RosterView, edit_roster
from dim_pipelines.testing.node_records import ADMISSION, NAME, NETWORK, NODE, NOW, member, node_record, roster

ROSTER = roster()
MINUTES_10 = 600_000


def judged(
    raw: bytes, mark: Mark | None = None, *, now_ms: int = NOW, view: RosterView = ROSTER, **others: Any
) -> Verdict:
    return judge(read_node_record(raw, NAME), mark, others.get("network", NETWORK), view, now_ms)


def test_the_first_record_and_every_later_one_is_news() -> None:
    assert judged(node_record(1)) is Verdict.NEW
    assert judged(node_record(2), mark_of(read_node_record(node_record(1), NAME))) is Verdict.NEW


def test_equal_bytes_are_a_duplicate() -> None:
    assert judged(node_record(5), mark_of(read_node_record(node_record(5), NAME))) is Verdict.DUPLICATE


def test_the_same_record_with_other_unsigned_bytes_is_the_same_record() -> None:
    """Who carries a record can change what is unsigned; that must not turn its author into a liar."""
    raw = node_record(5)
    changed = raw + entry.write_entry({99: b"by the way"})
    assert judged(raw, mark_of(read_node_record(changed, NAME))) is Verdict.DUPLICATE


def test_a_sequence_under_the_mark_is_refused() -> None:
    with pytest.raises(RolledBack, match="sequence 6 was accepted before"):
        judged(node_record(5), mark_of(read_node_record(node_record(6), NAME)))


def test_two_records_of_one_sequence_are_refused() -> None:
    with pytest.raises(RolledBack, match="two different records of sequence 5"):
        judged(node_record(5, reach="attached"), mark_of(read_node_record(node_record(5), NAME)))


def test_another_networks_record_is_refused() -> None:
    other = name_of(Ed25519PrivateKey.generate())
    with pytest.raises(RecordForged, match="another network"):
        judged(node_record(network=other))
    with pytest.raises(RecordForged, match="another network"):
        judged(node_record(), network=other)


def test_an_expired_record_is_refused() -> None:
    raw = node_record()
    assert judged(raw, now_ms=NOW + LIFETIME_MS - 1) is Verdict.NEW
    with pytest.raises(RecordExpired):
        judged(raw, now_ms=NOW + LIFETIME_MS)


def test_a_record_from_the_future_is_refused() -> None:
    assert judged(node_record(now_ms=NOW, issued_ms=NOW + SKEW_MS)) is Verdict.NEW
    with pytest.raises(RecordForged, match="from the future"):
        judged(node_record(issued_ms=NOW + SKEW_MS + 1))


def test_a_clock_ten_minutes_off_is_named_both_ways() -> None:
    ahead = node_record(NOW + MINUTES_10, NOW + MINUTES_10, issued_ms=NOW + MINUTES_10)
    with pytest.raises(RecordForged, match="from the future: issued in 600 s") as raised:
        judged(ahead)
    assert "clock" in raised.value.hint
    behind = node_record(NOW - MINUTES_10, NOW - MINUTES_10, issued_ms=NOW - MINUTES_10)
    with pytest.raises(RecordExpired, match="420 s ago") as late:
        judged(behind)
    assert "clock" in late.value.hint


def test_a_record_for_days_is_refused() -> None:
    assert judged(node_record(now_ms=NOW + LONGEST_MS - LIFETIME_MS)) is Verdict.NEW
    with pytest.raises(RecordForged, match="valid for"):
        judged(node_record(now_ms=NOW + 86_400_000))


def test_who_is_no_member_is_refused() -> None:
    with pytest.raises(Forbidden, match="no member"):
        judged(node_record(), view=roster(member(Ed25519PrivateKey.generate())))


def test_a_member_that_is_no_node_is_refused() -> None:
    with pytest.raises(Forbidden, match="not admitted as a node"):
        judged(node_record(), view=roster(member(NODE, "user", "publisher")))


def test_a_revoked_node_is_refused_with_the_reason() -> None:
    revocation = Revocation(key=public_bytes(NODE), reason="it lied", revoked_ms=NOW)
    signed, pages = edit_roster(ROSTER, ADMISSION, revoke=[revocation], now_ms=NOW)
    view = RosterView.open(signed, pages, NETWORK, NOW)
    with pytest.raises(Forbidden, match="it lied"):
        judged(node_record(), view=view)


OFFERS = st.lists(
    st.tuples(
        st.integers(0, 6),  # sequence
        st.sampled_from([0, 40_000, -200_000]),  # how far the node's clock is off, in ms
        st.sampled_from(["direct", "attached"]),  # two records of one sequence
        st.booleans(),  # whether it is for another network
    ),
    max_size=25,
)


@given(OFFERS)
def test_no_sequence_of_records_lowers_a_high_water_mark(offers: list[tuple[int, int, str, bool]]) -> None:
    mark: Mark | None = None
    accepted: dict[int, bytes] = {}
    for sequence, off_ms, reach, foreign in offers:
        clock = NOW + off_ms
        changes = {"network": NAME} if foreign else {}
        record = read_node_record(node_record(sequence, clock, issued_ms=clock, reach=reach, **changes), NAME)
        before = mark
        try:
            verdict = judge(record, mark, NETWORK, ROSTER, NOW)
        except (DiscoveryError, AccessError):
            continue
        if verdict is Verdict.NEW:
            mark = mark_of(record)
            assert before is None or mark.sequence > before.sequence
            assert sequence not in accepted
            accepted[sequence] = record.digest
        else:
            assert accepted[sequence] == record.digest
            assert mark == before
