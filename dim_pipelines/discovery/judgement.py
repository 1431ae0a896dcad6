"""Whether a node's record is taken in: a pure rule over the record, what was accepted before, and the roster.

The order is that of facts known: who it is for, who may say it, when it was said, and what was said before. Every
input to it is signed: the name's key signed the record's data, the admission key the roster.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final

from dim_pipelines.errors import Forbidden, RecordExpired, RecordForged, RolledBack

if TYPE_CHECKING:
    from dim_pipelines.discovery.record import NodeRecord
    from dim_pipelines.identity.roster import RosterView

SKEW_MS: Final = 30_000
"""How far a node's clock may be ahead of ours."""
LONGEST_MS: Final = 600_000
"""The longest time a record may still be valid: a node that is gone must not stand for days."""


class Verdict(Enum):
    """What a record is that was not refused: news, or what was accepted before (dropped and not counted)."""

    NEW = "new"
    DUPLICATE = "duplicate"


@dataclass(frozen=True, slots=True)
class Mark:
    """The high-water mark of a name.

    Attributes:
        sequence: of the record that was accepted last.
        raw_hash: its `digest`: SHA-256 of its signed bytes. What stands unsigned beside them can be changed by
            anybody on the way, and must not make an honest record look like a second one of its sequence.
    """

    sequence: int
    raw_hash: bytes


def mark_of(record: NodeRecord) -> Mark:
    """Give the mark that stands once a record was accepted."""
    return Mark(record.sequence, record.digest)


def judge(record: NodeRecord, mark: Mark | None, network: str, roster: RosterView, now_ms: int) -> Verdict:
    """Decide about a verified record of a node; pure.

    Args:
        record: what `read_node_record` gave, so its size and signature are right.
        mark: the name's high-water mark; None when no record of it was accepted.
        network: the network's id.
        roster: the newest roster.
        now_ms: Unix time in milliseconds.

    Raises:
        RecordForged: for another network, from the future, or valid for too long.
        Forbidden: the name is not admitted as a node, or was revoked.
        RecordExpired: it has expired.
        RolledBack: its sequence is under the mark, or the mark's own with other content.
    """
    if record.fields.network != network:
        raise RecordForged(f"the record is for another network: {record.fields.network[:80]!r}")
    member = roster.member(record.name)
    if "node" not in member.roles:
        raise Forbidden(f"{record.name} is a member, but not admitted as a node")
    if record.expires_ms <= now_ms:
        raise RecordExpired(
            f"the record expired {(now_ms - record.expires_ms) / 1000:.0f} s ago",
            hint="is the node running, and is its clock right?",
        )
    ahead_ms = record.fields.issued_ms - now_ms
    if ahead_ms > SKEW_MS:
        raise RecordForged(
            f"the record is from the future: issued in {ahead_ms / 1000:.0f} s", hint="set the clocks (NTP)"
        )
    if record.expires_ms - now_ms > LONGEST_MS + SKEW_MS:
        raise RecordForged(
            f"the record is valid for {(record.expires_ms - now_ms) // 1000} s; {LONGEST_MS // 1000} s is the most"
        )
    if mark is None or record.sequence > mark.sequence:
        return Verdict.NEW
    if record.sequence < mark.sequence:
        raise RolledBack(f"a record of sequence {mark.sequence} was accepted before; this one has {record.sequence}")
    if record.digest != mark.raw_hash:
        raise RolledBack(f"two different records of sequence {record.sequence}")
    return Verdict.DUPLICATE
