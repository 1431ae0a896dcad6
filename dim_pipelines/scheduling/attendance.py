"""Who joins a running batch, who is drained and who is cut: a pure rule of (the pool now, the sessions now).

A node whose session is open and heard is not left because others doubt it: the run worker's own ears are nearer. What
the node or its network says for certain (paused, draining, revoked, gone) counts at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum


class Presence(Enum):
    """How a node stands towards a batch."""

    READY = "ready"
    """It can take the work."""
    DOUBTFUL = "doubtful"
    """It is silent, or was not heard yet: no new session; an open one goes on while it is heard."""
    LEAVING = "leaving"
    """It wants no more work, or is not fit for it any more: what it has begun may end."""
    GONE = "gone"
    """It is out: its record has ended, it was revoked, or another node stands in its place."""


class Link(Enum):
    """How a batch's session with a node stands."""

    OPEN = "open"
    """It is used, or being opened."""
    DRAINING = "draining"
    """It gets no new tasks."""
    ENDED = "ended"
    """It is over; another may be opened."""
    BARRED = "barred"
    """It is over for good: the node gave wrong outputs."""


@dataclass(frozen=True, slots=True)
class Standing:
    """A node's presence, and why it is not READY."""

    presence: Presence
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Changes:
    """What to do, by node id.

    Attributes:
        join: open a session, the best first.
        resume: let a draining session have tasks again.
        drain: no new tasks, for the reason given.
        cut: end the session now, for the reason given.
    """

    join: tuple[str, ...] = ()
    resume: tuple[str, ...] = ()
    drain: Mapping[str, str] = field(default_factory=dict)
    cut: Mapping[str, str] = field(default_factory=dict)


def attend(pool: Mapping[str, Standing], links: Mapping[str, Link], order: Sequence[str], room: int) -> Changes:
    """Compare the pool with the sessions.

    Args:
        pool: every node of the pool.
        links: the batch's sessions.
        order: nodes that are READY, the best first; one that is not named does not join.
        room: sessions that may be open at a time.
    """
    drain: dict[str, str] = {}
    cut: dict[str, str] = {}
    resume: list[str] = []
    missing = Standing(Presence.GONE, "it is in the pool no more")
    for node, link in links.items():
        if link in (Link.ENDED, Link.BARRED):
            continue
        standing = pool.get(node, missing)
        if standing.presence is Presence.GONE:
            cut[node] = standing.reason
        elif standing.presence is Presence.LEAVING and link is Link.OPEN:
            drain[node] = standing.reason
        elif standing.presence is Presence.READY and link is Link.DRAINING:
            resume.append(node)
    used = sum(link is Link.OPEN for node, link in links.items() if node not in drain and node not in cut)
    free = room - used - len(resume)
    able = [
        node
        for node in order
        if pool.get(node, missing).presence is Presence.READY and links.get(node, Link.ENDED) is Link.ENDED
    ]
    return Changes(tuple(able[: max(0, free)]), tuple(resume), drain, cut)
