"""What state a node is in, and what moves it to another: pure rules of (status, event, now).

`SEEN` heard of, no valid record yet · `VERIFIED` its signed record was accepted · `ELIGIBLE` it answers, too: work may
go to it · `SUSPECT` it was lost, or has said farewell: no new work · `GONE` its record has ended, or it was revoked.

A node that comes and goes is damped as a route is (RFC 2439): each loss adds to a penalty that halves every minute;
above 3,000 the node stays SUSPECT, however healthy, until the penalty is below 1,000.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Literal, assert_never

State = Literal["SEEN", "VERIFIED", "ELIGIBLE", "SUSPECT", "GONE"]
"""How far a node has come."""
STATES: Final[tuple[State, ...]] = ("SEEN", "VERIFIED", "ELIGIBLE", "SUSPECT", "GONE")

FLAP_PENALTY: Final = 1000.0
"""What a loss that was seen here adds."""
LOST_PENALTY: Final = 500.0
"""What the word of a run worker adds: half, because the trouble may be the worker's own."""
HALF_LIFE_MS: Final = 60_000
"""How long a penalty takes to halve."""
SUPPRESS_ABOVE: Final = 3000.0
REUSE_BELOW: Final = 1000.0
LONGEST_PENALTY: Final = 12_000.0
"""A penalty never grows beyond this, so that a node that has behaved for four minutes is always taken again."""
LISTENING_GRACE_MS: Final = 90_000
"""How long after the start of listening a record that ended meanwhile still counts for a node that was good: a node
publishes every 60 s, and nobody could hear it before."""
FAREWELL: Final = "it is shutting down, as its own record says"
"""The reason of a node that drains: only a record that says otherwise brings it back."""


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """What is concluded about a node.

    Attributes:
        state: how far it has come.
        reason: why it is there, for people; empty where there is nothing to say.
        since_ms: Unix time in milliseconds at which it came into the state.
        expires_ms: when its record ends; 0 where none was accepted.
        healthy_ms: when it was last seen to answer, at the latest change; None: never.
        penalty: of flapping, at `penalty_ms`.
        penalty_ms: Unix time in milliseconds for which `penalty` holds.
        suppressed: it has flapped so much that it is kept SUSPECT.
    """

    state: State = "SEEN"
    reason: str = ""
    since_ms: int = 0
    expires_ms: int = 0
    healthy_ms: int | None = None
    penalty: float = 0.0
    penalty_ms: int = 0
    suppressed: bool = False


@dataclass(frozen=True, slots=True)
class RecordAccepted:
    """A newer record was accepted.

    Attributes:
        expires_ms: when it ends, Unix milliseconds.
        moved: it names another address, certificate or start than the one before.
        leaving: it says that the node is draining.
    """

    expires_ms: int
    moved: bool = False
    leaving: bool = False


@dataclass(frozen=True, slots=True)
class RecordRefused:
    """A record under the node's name was refused; anybody can cause this, so it moves nothing."""

    reason: str


@dataclass(frozen=True, slots=True)
class Healthy:
    """It answered a health check that began at `begun_ms` (Unix milliseconds)."""

    begun_ms: int


@dataclass(frozen=True, slots=True)
class Unhealthy:
    """It did not answer health checks."""

    reason: str


@dataclass(frozen=True, slots=True)
class Attached:
    """It holds its stream to an orchestrator."""


@dataclass(frozen=True, slots=True)
class Detached:
    """Its stream to the orchestrator has ended."""

    reason: str = "it is attached to no orchestrator"


@dataclass(frozen=True, slots=True)
class LostByRun:
    """A run worker has lost its session."""

    reason: str


@dataclass(frozen=True, slots=True)
class Revoked:
    """It is no member any more."""

    reason: str


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed; `listening_since_ms`: since when records are listened for (Unix milliseconds)."""

    listening_since_ms: int = 0


Event = RecordAccepted | RecordRefused | Healthy | Unhealthy | Attached | Detached | LostByRun | Revoked | Tick


def step(status: NodeStatus, event: Event, now_ms: int) -> NodeStatus:
    """Give the status after an event; the same object where nothing changes."""
    match event:
        case RecordAccepted():
            return _accepted(status, event, now_ms)
        case RecordRefused():
            return replace(status, reason=event.reason) if status.state == "SEEN" else status
        case Healthy():
            return _healthy(status, event.begun_ms, now_ms)
        case Attached():
            return _healthy(status, now_ms, now_ms)
        case Unhealthy() | Detached():
            return _lost(status, event.reason, FLAP_PENALTY, now_ms)
        case LostByRun():
            return _lost(status, event.reason, LOST_PENALTY, now_ms)
        case Revoked():
            return _to(status, "GONE", f"revoked: {event.reason}", now_ms)
        case Tick():
            return _tick(status, event.listening_since_ms, now_ms)
    assert_never(event)


def penalty_at(status: NodeStatus, now_ms: int) -> float:
    """Give what is left of the penalty; a clock that went back leaves all of it."""
    passed = max(0, now_ms - status.penalty_ms)
    return float(status.penalty * 0.5 ** (passed / HALF_LIFE_MS))


def _accepted(status: NodeStatus, event: RecordAccepted, now_ms: int) -> NodeStatus:
    fresh = replace(status, expires_ms=event.expires_ms)
    if event.leaving:  # no penalty: whoever says farewell is no flapping node
        return _to(fresh, "SUSPECT", FAREWELL, now_ms)
    if status.state in ("SEEN", "GONE") or _has_left(status):
        return _to(fresh, "VERIFIED", "its record is good; it has not answered yet", now_ms)
    if status.state == "ELIGIBLE" and event.moved:
        return _to(fresh, "VERIFIED", "it has been started again or has moved; it has not answered yet", now_ms)
    return fresh


def _healthy(status: NodeStatus, begun_ms: int, now_ms: int) -> NodeStatus:
    if status.state in ("SEEN", "GONE", "ELIGIBLE") or _has_left(status):
        return status  # without a valid record an answer is worth nothing, and a node that drains still answers
    if begun_ms < status.since_ms:
        return status  # the check began before it was lost
    if status.suppressed and (left := penalty_at(status, now_ms)) >= REUSE_BELOW:
        reason = "it comes and goes: it answers, and is taken again when it has stayed for a while"
        if status.reason == reason:
            return status
        return replace(status, reason=reason, penalty=left, penalty_ms=now_ms)
    left = penalty_at(status, now_ms)
    calm = replace(status, suppressed=False, healthy_ms=now_ms, penalty=left, penalty_ms=now_ms)
    return _to(calm, "ELIGIBLE", "", now_ms)


def _lost(status: NodeStatus, reason: str, penalty: float, now_ms: int) -> NodeStatus:
    if status.state == "VERIFIED":  # it never answered: there is nothing to damp, and it stays to be tried
        return status if status.reason == reason else replace(status, reason=reason)
    if _has_left(status):
        return status  # as it said
    if status.state == "SUSPECT":
        return status if status.suppressed or status.reason == reason else replace(status, reason=reason)
    if status.state != "ELIGIBLE":
        return status
    total = min(penalty_at(status, now_ms) + penalty, LONGEST_PENALTY)
    suppressed = status.suppressed or total > SUPPRESS_ABOVE
    return _to(replace(status, penalty=total, penalty_ms=now_ms, suppressed=suppressed), "SUSPECT", reason, now_ms)


def _has_left(status: NodeStatus) -> bool:
    return status.state == "SUSPECT" and status.reason == FAREWELL


def _tick(status: NodeStatus, listening_since_ms: int, now_ms: int) -> NodeStatus:
    if status.state in ("SEEN", "GONE") or now_ms < status.expires_ms:
        return status
    was_good = status.state in ("VERIFIED", "ELIGIBLE")
    if was_good and listening_since_ms <= now_ms < listening_since_ms + LISTENING_GRACE_MS:
        return status
    why = "its record has ended" + (f" ({status.reason})" if status.reason else "")
    return _to(status, "GONE", why, now_ms)


def _to(status: NodeStatus, state: State, reason: str, now_ms: int) -> NodeStatus:
    if (status.state, status.reason) == (state, reason):
        return status
    since = status.since_ms if status.state == state else now_ms
    return replace(status, state=state, reason=reason, since_ms=since)
