"""Who is attached, and which tunnels are open: the rules of the relay, without I/O.

Names here are of members whose certificate was checked, so what is kept per name is bounded by the roster. Time is
given in, in seconds of any monotonic clock.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from dim_pipelines.domain.roster import Limits
from dim_pipelines.errors import Forbidden, NodeBusy, NodeUnreachable, ProtocolError, QuotaExceeded

PULSE_S: Final = 2.0
"""How often each side of an attachment says that it lives, in seconds."""
SILENT_S: Final = 6.0
"""Silence after which an attachment is lost, in seconds."""
MAX_NODE_TUNNELS: Final = 16
"""Tunnels that one node may have at a time, unless the roster says less."""
MAX_CALLER_STREAMS: Final = 256
"""Streams (tunnels and attachments) that one member may hold open at a time, unless the roster says otherwise."""
MAX_TUNNELS: Final = 256
"""Tunnels through one orchestrator: a stalled one holds about 6 MiB of it (measured), which bounds its memory."""
_PULSES: Final = (16.0, 4.0)  # burst, and how many come back in a second: a pulse every 2 s is far below
_OPENINGS: Final = (256.0, 32.0)  # a run worker opens a tunnel to each of its nodes at once
_DIALS: Final = (64.0, 8.0)  # what strangers may make one node do

SESSION_BYTES: Final = 16


@dataclass(slots=True)
class Bucket:
    """A token bucket: `burst` at once, then `per_s`."""

    burst: float
    per_s: float
    level: float = field(default=-1.0)
    filled: float = 0.0

    def take(self, now: float) -> bool:
        """Take one token; False where there is none."""
        if self.level < 0:
            self.level, self.filled = self.burst, now
        self.level = min(self.burst, self.level + max(0.0, now - self.filled) * self.per_s)
        self.filled = max(self.filled, now)
        if self.level < 1.0:
            return False
        self.level -= 1.0
        return True


@dataclass(slots=True, eq=False)
class Link:
    """A node's attachment."""

    node: str
    boot: bytes
    last_heard: float
    max_sessions: int
    pulses: Bucket

    def heard(self, now: float) -> None:
        """Take in a pulse.

        Raises:
            ProtocolError: they come in a flood.
        """
        self.last_heard = max(self.last_heard, now)
        if not self.pulses.take(now):
            raise ProtocolError("a flood of pulses: the attachment is ended")

    def silent(self, now: float) -> bool:
        """Tell whether nothing has come for too long."""
        return now - self.last_heard > SILENT_S


@dataclass(frozen=True, slots=True)
class Session:
    """A tunnel, from the request until both ends are closed."""

    id: bytes
    caller: str
    node: str


@dataclass(slots=True)
class _Member:
    streams: int = 0
    openings: Bucket = field(default_factory=lambda: Bucket(*_OPENINGS))
    dials: Bucket = field(default_factory=lambda: Bucket(*_DIALS))


class LinkTable:
    """What one orchestrator relays."""

    def __init__(
        self,
        limits: Callable[[str], Limits],
        *,
        max_tunnels: int = MAX_TUNNELS,
        token: Callable[[], bytes] = lambda: secrets.token_bytes(SESSION_BYTES),
    ) -> None:
        """Begin empty.

        Args:
            limits: what a member may use, by IPNS name.
            max_tunnels: tunnels in all, at a time.
            token: makes the ids of sessions; nobody may guess one.
        """
        self._limits = limits
        self._max_tunnels = max_tunnels
        self._token = token
        self._links: dict[str, Link] = {}
        self._members: dict[str, _Member] = {}
        self._waiting: dict[bytes, Session] = {}
        self._tunnels: dict[str, int] = {}
        self._open = 0

    @property
    def attached(self) -> frozenset[str]:
        """The names of all attached nodes."""
        return frozenset(self._links)

    @property
    def tunnels(self) -> int:
        """How many tunnels are asked for or open."""
        return self._open

    def open_stream(self, name: str, now: float) -> None:
        """Count a stream of a member, whatever it is for; `close_stream` follows, unless this raises.

        Raises:
            QuotaExceeded: the member has too many open, or opens them too fast.
        """
        member = self._members.setdefault(name, _Member())
        given = self._limits(name).max_streams
        most = MAX_CALLER_STREAMS if given is None else given
        if member.streams >= most:
            raise QuotaExceeded(f"{member.streams} streams are open, the limit is {most}")
        if not member.openings.take(now):
            raise QuotaExceeded(f"more than {_OPENINGS[1]:.0f} streams a second", hint="open them more slowly")
        member.streams += 1

    def close_stream(self, name: str) -> None:
        """Take a stream of a member back."""
        self._members[name].streams -= 1

    def attach(self, node: str, boot: bytes, now: float) -> tuple[Link, Link | None]:
        """Attach a node; gives its link, and the one that this replaces: the newest is the living one."""
        given = self._limits(node).max_sessions
        most = MAX_NODE_TUNNELS if given is None else min(given, MAX_NODE_TUNNELS)
        link = Link(node, boot, now, most, Bucket(*_PULSES))
        replaced = self._links.get(node)
        self._links[node] = link
        return link, replaced

    def detach(self, link: Link) -> bool:
        """Forget a link; False where another has replaced it. Open tunnels go on: they do not need it."""
        if self._links.get(link.node) is not link:
            return False
        del self._links[link.node]
        return True

    def connect(self, caller: str, node: str, now: float) -> tuple[Session, Link]:
        """Begin a tunnel to a node; `release` follows, unless this raises.

        Raises:
            NodeUnreachable: the node is not attached here.
            NodeBusy: it has as many tunnels as it may have, or was asked too often.
            QuotaExceeded: the orchestrator has as many as it may have.
        """
        link = self._links.get(node)
        if link is None:
            raise NodeUnreachable(
                f"node {node[:80]} is not attached here", hint="its newest record names where it is attached"
            )
        if self._tunnels.get(node, 0) >= link.max_sessions:
            raise NodeBusy(f"node {node} has {link.max_sessions} tunnels, its limit")
        if self._open >= self._max_tunnels:
            raise QuotaExceeded(f"the orchestrator has {self._max_tunnels} tunnels, its limit")
        if not self._members.setdefault(node, _Member()).dials.take(now):
            raise NodeBusy(f"node {node} was asked for more than {_DIALS[1]:.0f} tunnels a second")
        session = Session(self._token(), caller, node)
        self._waiting[session.id] = session
        self._tunnels[node] = self._tunnels.get(node, 0) + 1
        self._open += 1
        return session, link

    def claim(self, dialler: str, id: bytes) -> Session:
        """Give the session that a node dials for; each is given once.

        Raises:
            Forbidden: nobody waits for it, or it is another node's.
        """
        session = self._waiting.get(id)
        if session is None or session.node != dialler:  # one answer for both: it tells nothing about others' sessions
            raise Forbidden("no caller waits for this node under that session")
        del self._waiting[id]
        return session

    def release(self, session: Session) -> None:
        """Forget a tunnel."""
        self._waiting.pop(session.id, None)
        self._open -= 1
        left = self._tunnels[session.node] - 1
        if left:
            self._tunnels[session.node] = left
        else:
            del self._tunnels[session.node]


IDLE_S: Final = 90.0
"""A tunnel in which nothing moves is ended after this long: gRPC inside it says something every 10 s."""
STALL_S: Final = 30.0
"""A tunnel whose reader takes nothing of what waits for it is ended after this long."""


@dataclass(slots=True)
class Flow:
    """One direction of a tunnel.

    Attributes:
        moved: when a chunk was passed on last, in seconds.
        waiting: since when a chunk waits for its reader; None where none does.
        bytes: what was passed on.
    """

    moved: float
    waiting: float | None = None
    bytes: int = 0


def standstill(flows: tuple[Flow, Flow], now: float) -> str:
    """Give why a tunnel has stood still for too long; empty where it has not."""
    if any(flow.waiting is not None and now - flow.waiting > STALL_S for flow in flows):
        return f"the reader took nothing for {STALL_S:.0f} s"
    if now - max(flow.moved for flow in flows) > IDLE_S:
        return f"nothing moved for {IDLE_S:.0f} s"
    return ""
