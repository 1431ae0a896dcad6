"""The one resolver of an orchestrator: it takes in nodes' records by every road, and keeps the table of nodes true.

Records come by Announce, by the bus and from the name service; all are judged alike and whoever brings one counts for
nothing. What costs little comes first: size, the bringer's rate, membership; a signature is checked after those.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections import Counter
from collections.abc import Callable
from typing import Final, Protocol

from dim_pipelines.bus.bus import Bus
from dim_pipelines.bus.rate_limit import RateLimit
from dim_pipelines.discovery.announcement import read_announcement
from dim_pipelines.discovery.judgement import Verdict, judge
from dim_pipelines.discovery.names import MAX_RECORD_BYTES, NameService
from dim_pipelines.discovery.node_states import RecordRefused, Revoked, Tick
from dim_pipelines.discovery.node_table import NodeRow, NodeTable
from dim_pipelines.discovery.polling import PollPlan
from dim_pipelines.discovery.record import read_node_record, verify_record
from dim_pipelines.domain.ipns import ipns_name
from dim_pipelines.errors import (
    ContentUnavailable,
    DimError,
    DiscoveryError,
    Forbidden,
    InputError,
    NameUnresolved,
    QuotaExceeded,
    RecordForged,
)
from dim_pipelines.identity.roster import RosterView

log = logging.getLogger(__name__)

PEER_RATE: Final = 5.0
"""Announcements a second of one bringer; a publisher sends one a minute, and ten a second for a moment at most."""
PEER_BURST: Final = 50.0
PEERS: Final = 10_000
"""How many bringers' rates are remembered."""
WAITING: Final = 256
"""How many announcements may wait for the table."""
AT_ONCE: Final = 16
"""How many names are asked for at a time."""
ASK_S: Final = 5.0
TICK_S: Final = 1.0
POLL_S: Final = 5.0
"""How often the plan of names is looked at; it says itself how often a name is asked for."""
_RETRY_S: Final = 2.0


class Network(Protocol):
    """The part of a home's membership that the resolver needs."""

    @property
    def network(self) -> str:
        """IPNS name of the network's root key."""
        ...

    @property
    def roster(self) -> RosterView:
        """The newest roster."""
        ...


class Resolver:
    """Takes in records and the passing of time.

    Attributes:
        outcomes: (road, what became of it) → how many records: `new`, `duplicate`, or the code of the refusal.
    """

    def __init__(
        self,
        table: NodeTable,
        membership: Network,
        names: NameService | None,
        bus: Bus | None,
        *,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Make a resolver.

        Args:
            table: where nodes are kept.
            membership: whose network and roster count.
            names: the name service that is asked; None: records come by the other roads only.
            bus: the bus that is listened to; None: likewise.
            now_ms: Unix time in milliseconds.
            clock: seconds of a monotonic clock.
        """
        self.outcomes: Counter[tuple[str, str]] = Counter()
        self._table, self._membership, self._names, self._bus = table, membership, names, bus
        self._now_ms = now_ms
        self._since_ms = now_ms()
        self._bringers: RateLimit[str] = RateLimit(PEER_RATE, PEER_BURST, clock, PEERS)
        self._turn = asyncio.Lock()
        self._waiting = 0
        self._wakes: list[Callable[[str], None]] = []
        self._plan = PollPlan()
        self._swept: RosterView | None = None

    def on_change(self, wake: Callable[[str], None]) -> None:
        """Have a callback told the name of each node whose row has changed here."""
        self._wakes.append(wake)

    async def offer(self, name: str, raw: bytes, road: str, bringer: str = "") -> NodeRow:
        """Take in a record.

        Args:
            name: the IPNS name that it is said to be of.
            raw: its bytes.
            road: how it came: `announce`, `bus`, `ipns`.
            bringer: who brought it; its rate is limited. Empty: asked for by this resolver itself.

        Returns:
            The node's row; of a duplicate too.

        Raises:
            QuotaExceeded: the bringer brings too many, or too many wait.
            Forbidden: the name is no admitted node's, or was revoked.
            DiscoveryError: the record is forged, expired or rolled back.
        """
        try:
            row, outcome = await self._offer(name, raw, bringer)
        except DimError as error:
            self.outcomes[road, error.code] += 1
            raise
        self.outcomes[road, outcome] += 1
        return row

    async def run(self) -> None:
        """Listen, ask and tick until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._tick_for_ever())
            if self._bus is not None:
                tasks.create_task(self._listen(self._bus))
            if self._names is not None:
                tasks.create_task(self._ask_for_ever(self._names))

    async def tick(self) -> None:
        """Let time pass: records end, and members are revoked."""
        now, roster = self._now_ms(), self._membership.roster
        if roster is not self._swept:
            async with self._turn:  # a record that is being judged by an older roster stands before this looks
                for row in await asyncio.to_thread(self._table.rows, ("SEEN", "VERIFIED", "ELIGIBLE", "SUSPECT")):
                    if (why := _no_node(roster, row.name)) is not None:
                        await self._apply(row.name, Revoked(why), now)
            self._swept = roster
        for name in await asyncio.to_thread(self._table.ended, now):
            await self._apply(name, Tick(self._since_ms), now)

    async def ask(self) -> int:
        """Ask the name service for the records that are due, and give how many names that were."""
        assert self._names is not None
        now = self._now_ms()
        rows = {row.name: row for row in await asyncio.to_thread(self._table.rows)}
        expiring = {}
        for name, member in self._membership.roster.members.items():
            if "node" in member.roles:
                row = rows.get(name)
                expiring[name] = 0 if row is None or row.state == "GONE" else row.expires_ms
        due = self._plan.due(expiring, now)
        slots = asyncio.Semaphore(AT_ONCE)
        await asyncio.gather(*(self._ask_one(self._names, name, slots) for name in due))
        return len(due)

    async def _offer(self, name: str, raw: bytes, bringer: str) -> tuple[NodeRow, str]:
        if len(raw) > MAX_RECORD_BYTES:
            raise RecordForged(f"a record of {len(raw)} bytes; {MAX_RECORD_BYTES} is the most")
        if bringer and not self._bringers.allows(bringer):
            raise QuotaExceeded("too many announcements", hint=f"at most {PEER_RATE:g} a second")
        member = self._membership.roster.member(name)
        if "node" not in member.roles:
            raise Forbidden(f"{name} is no node of this network")
        if self._waiting >= WAITING:
            raise QuotaExceeded("too many announcements wait")
        self._waiting += 1
        try:
            async with self._turn:
                return await self._judge(name, raw, trusted=bringer in ("", name))
        finally:
            self._waiting -= 1

    async def _judge(self, name: str, raw: bytes, *, trusted: bool) -> tuple[NodeRow, str]:
        """Judge a record in turn; why it is refused is kept where the node has said it, or a trusted bringer."""
        now, roster = self._now_ms(), self._membership.roster
        member = roster.member(name)
        row = await asyncio.to_thread(self._table.row, name)
        if row is not None and row.raw == raw and row.state not in ("SEEN", "GONE") and row.expires_ms > now:
            return row, "duplicate"
        try:
            record = read_node_record(raw, name)
            verdict = judge(record, row.mark if row else None, self._membership.network, roster, now)
            if verdict is Verdict.DUPLICATE:
                assert row is not None
                return row, "duplicate"
            fresh = await asyncio.to_thread(self._table.offer, record, member, now)
        except (DiscoveryError, InputError) as error:
            if trusted or _is_signed(raw, name):  # what anybody made up is told to who brings it, and nobody else
                await asyncio.to_thread(self._table.see, name, member, now)
                await self._apply(name, RecordRefused(error.message), now)
            raise
        if row is None or fresh.change != row.change:
            self._wake(name)
        return fresh, "new"

    async def _listen(self, bus: Bus) -> None:
        while True:
            try:
                async with bus.subscribe("nodes") as hints:
                    async for hint in hints:
                        sender = ipns_name(hint.sender)
                        if sender not in self._membership.roster.members:
                            self.outcomes["bus", Forbidden.code] += 1
                            continue
                        with contextlib.suppress(DimError):  # counted in `outcomes`
                            name, raw = read_announcement(hint.body)
                            await self.offer(name, raw, "bus", f"bus:{sender}")
            except ContentUnavailable as error:
                log.warning("the bus does not answer: %s", error.message)
            await asyncio.sleep(_RETRY_S)

    async def _ask_for_ever(self, names: NameService) -> None:
        while True:
            try:
                await self.ask()
            except DimError as error:
                log.warning("names were not resolved: %s", error.message)
            await asyncio.sleep(POLL_S * random.uniform(0.9, 1.1))

    async def _ask_one(self, names: NameService, name: str, slots: asyncio.Semaphore) -> None:
        async with slots:
            try:
                raw = await names.get(name, ASK_S)
            except NameUnresolved:
                self._plan.missed(name)
                return
            except DimError as error:  # it does not answer, or says itself that what it has is no record
                self.outcomes["ipns", error.code] += 1
                return
        self._plan.found(name)
        with contextlib.suppress(DimError):  # counted in `outcomes`; what is served may be old or garbage
            await self.offer(name, raw, "ipns")

    async def _tick_for_ever(self) -> None:
        while True:
            try:
                await self.tick()
            except DimError as error:
                log.warning("the table of nodes was not looked at: %s", error.message)
            await asyncio.sleep(TICK_S)

    async def _apply(self, name: str, event: RecordRefused | Revoked | Tick, now_ms: int) -> None:
        before = await asyncio.to_thread(self._table.row, name)
        after = await asyncio.to_thread(self._table.apply, name, event, now_ms)
        if before is not None and after is not None and before.change != after.change:
            self._wake(name)

    def _wake(self, name: str) -> None:
        for wake in self._wakes:
            wake(name)


def _is_signed(raw: bytes, name: str) -> bool:
    try:
        verify_record(raw, name)
    except (DiscoveryError, InputError):
        return False
    return True


def _no_node(roster: RosterView, name: str) -> str | None:
    """Say why a name is no admitted node any more; None where it is one."""
    if (gone := roster.revoked.get(name)) is not None:
        return gone.reason
    member = roster.members.get(name)
    if member is None:
        return "it is in the roster no more"
    return None if "node" in member.roles else "it may be a node no more"
