"""Whether nodes answer: gRPC health with the certificate of their record, every three seconds.

Two misses make a node SUSPECT: one that dies is found out within about 3 + 3 + 2 s. An attached node is as alive as its
link; one that hangs on another orchestrator is as alive as that one says.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from dim_pipelines.discovery.node_states import Detached, Event, Healthy, State, Unhealthy, step
from dim_pipelines.discovery.node_table import NodeRow, NodeTable
from dim_pipelines.errors import ConfigurationError, DimError
from dim_pipelines.wire.channel import open_channel
from dim_pipelines.wire.tls import ClientKeys, PinnedPeer

log = logging.getLogger(__name__)

INTERVAL_S: Final = 3.0
TIMEOUT_S: Final = 2.0
AT_ONCE: Final = 64
MISSES: Final = 2
"""How many checks in a row fail until a node is lost."""
_LOOK_S: Final = 0.5  # how often the table is looked at where nobody has called `soon`
_PROBED: Final[tuple[State, ...]] = ("VERIFIED", "ELIGIBLE", "SUSPECT")


class PeerOrchestrators(Protocol):
    """What other orchestrators say of the nodes that hang on them."""

    async def states(self, orchestrator: str) -> Mapping[str, str]:
        """Give the state of each node that an orchestrator (IPNS name) knows.

        Raises:
            DimError: it does not answer.
        """
        ...


@dataclass(slots=True)
class _Watched:
    row: NodeRow
    next_s: float
    misses: int = 0
    probing: bool = False


class _Line:
    """A channel to a direct node, kept from check to check: at the endpoint that has answered, once one has."""

    def __init__(self, row: NodeRow, client: ClientKeys) -> None:
        record = row.record
        assert record is not None
        self.key = (record.fields.endpoints, record.fields.certificate)
        self._peer = PinnedPeer(row.name, record.fields.certificate)
        self._client = client
        self._endpoints = record.fields.endpoints
        self._good: tuple[str, grpc.aio.Channel] | None = None

    async def check(self, timeout_s: float) -> str:
        """Ask once and give why it failed; empty when the node answered."""
        if self._good is not None:
            why = await _ask(self._good[1], timeout_s)
            if not why:
                return ""
            await self.close()
            return why
        if not self._endpoints:
            return "its record names no endpoint"
        try:
            channels = {each: open_channel(each, peer=self._peer, client=self._client) for each in self._endpoints}
        except DimError as error:
            return error.message
        asked = {asyncio.create_task(_ask(channel, timeout_s)): each for each, channel in channels.items()}
        reasons: list[str] = []
        try:
            for answer in asyncio.as_completed(asked):
                if why := await answer:
                    reasons.append(why)
                    continue
                winner = next(each for task, each in asked.items() if task.done() and not task.result())
                self._good = (winner, channels.pop(winner))
                return ""
            return reasons[0]
        finally:
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
            await asyncio.gather(*(channel.close(None) for channel in channels.values()))

    async def close(self) -> None:
        """Close the channel."""
        if self._good is not None:
            good, self._good = self._good, None
            await good[1].close(None)


class Prober:
    """Checks the nodes of the table for as long as it runs."""

    def __init__(
        self,
        table: NodeTable,
        own_name: str,
        client: ClientKeys,
        attached: Callable[[], Collection[str]],
        peers: PeerOrchestrators,
        *,
        interval_s: float = INTERVAL_S,
        timeout_s: float = TIMEOUT_S,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        changed: Callable[[str], None] = lambda name: None,
    ) -> None:
        """Make a prober.

        Args:
            table: the nodes.
            own_name: IPNS name of this orchestrator.
            client: its certificate as a client.
            attached: gives the names of the nodes whose link is held here.
            peers: asked about nodes whose link is held elsewhere.
            interval_s: between two checks of a node.
            timeout_s: how long a check may take.
            now_ms: Unix time in milliseconds.
            changed: told the name of each node whose row a check has changed.
        """
        self._table, self._own_name, self._client = table, own_name, client
        self._attached, self._peers = attached, peers
        self._interval_s, self._timeout_s = interval_s, timeout_s
        self._now_ms, self._told = now_ms, changed
        self._watched: dict[str, _Watched] = {}
        self._lines: dict[str, _Line] = {}
        self._said: dict[str, tuple[float, Mapping[str, str] | DimError]] = {}
        self._asking: dict[str, asyncio.Lock] = {}
        self._cursor = 0
        self._wake = asyncio.Event()
        self._hurry: set[str] = set()
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._tasks: set[asyncio.Task[None]] = set()

    def soon(self, name: str) -> None:
        """Check a node at once: its record or its link has just changed."""
        self._hurry.add(name)
        self._wake.set()

    async def run(self) -> None:
        """Check for ever, until cancelled."""
        try:
            while True:
                try:
                    await self._look()
                except ConfigurationError as error:
                    log.warning("the table of nodes was not looked at: %s", error.message)
                self._begin_due()
                try:
                    async with asyncio.timeout(_LOOK_S):
                        await self._wake.wait()
                except TimeoutError:
                    pass
                self._wake.clear()
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await asyncio.gather(*(line.close() for line in self._lines.values()))

    async def _look(self) -> None:
        for row in await asyncio.to_thread(self._table.changed_since, self._cursor):
            self._cursor = max(self._cursor, row.change)
            watched = self._watched.get(row.name)
            if row.state not in _PROBED:
                self._watched.pop(row.name, None)
                if (line := self._lines.pop(row.name, None)) is not None:
                    await line.close()
            elif watched is None:
                # Nodes that are found at once, after a restart, are not all asked at once; a new one is.
                begin = 0.0 if row.state == "VERIFIED" else random.uniform(0, self._interval_s)
                self._watched[row.name] = _Watched(row, time.monotonic() + begin)
            else:
                if watched.row.state != row.state:
                    watched.misses = 0
                watched.row = row

    def _begin_due(self) -> None:
        now = time.monotonic()
        hurried, self._hurry = self._hurry, set()
        for name, watched in self._watched.items():
            if watched.probing or (watched.next_s > now and name not in hurried):
                continue
            watched.probing = True
            watched.next_s = now + self._interval_s * random.uniform(0.9, 1.1)
            task = asyncio.create_task(self._probe(watched))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _probe(self, watched: _Watched) -> None:
        try:
            async with self._slots:
                row, begun = watched.row, self._now_ms()
                event = await (self._by_link(row, begun) if row.reach == "attached" else self._by_health(row, begun))
            if isinstance(event, Healthy):
                watched.misses = 0
            else:
                watched.misses += 1
                if watched.misses < MISSES and not isinstance(event, Detached) and row.state != "VERIFIED":
                    return
            if self._watched.get(row.name) is watched:
                await self._apply(watched, event)
        except DimError as error:
            log.warning("node %s was not checked: %s", watched.row.label, error.message)
        finally:
            watched.probing = False

    async def _apply(self, watched: _Watched, event: Event) -> None:
        now = self._now_ms()
        if step(watched.row.status, event, now) is watched.row.status:
            return  # as nearly always: nothing to write
        before = watched.row
        row = await asyncio.to_thread(self._table.apply, before.name, event, now)
        if row is None:
            return
        watched.row = row
        if row.change != before.change:
            if row.state != before.state:
                log.info("node %s is %s%s", row.label, row.state, f": {row.reason}" if row.reason else "")
            self._told(row.name)

    async def _by_health(self, row: NodeRow, begun_ms: int) -> Event:
        record = row.record
        if record is None:
            return Unhealthy("no record of it was accepted")
        line = self._lines.get(row.name)
        if line is None or line.key != (record.fields.endpoints, record.fields.certificate):
            if line is not None:
                await line.close()
            line = self._lines[row.name] = _Line(row, self._client)
        why = await line.check(self._timeout_s)
        return Unhealthy(f"it does not answer health checks: {why}") if why else Healthy(begun_ms)

    async def _by_link(self, row: NodeRow, begun_ms: int) -> Event:
        if row.name in self._attached():
            return Healthy(begun_ms)
        if row.relay is None or row.relay == self._own_name:
            return Detached()
        said = await self._states(row.relay)
        if isinstance(said, DimError):
            return Unhealthy(f"its orchestrator does not answer: {said.message}")
        state = said.get(row.name, "")
        return Healthy(begun_ms) if state == "ELIGIBLE" else Unhealthy(f"its orchestrator says {state or 'nothing'}")

    async def _states(self, orchestrator: str) -> Mapping[str, str] | DimError:
        """Give what an orchestrator says, asked once for all of its nodes."""
        async with self._asking.setdefault(orchestrator, asyncio.Lock()):
            at, said = self._said.get(orchestrator, (-1e9, {}))
            if time.monotonic() - at < self._interval_s / 2:
                return said
            try:
                async with asyncio.timeout(self._timeout_s):
                    said = await self._peers.states(orchestrator)
            except TimeoutError:
                said = DimError("no answer in time")
            except DimError as error:
                said = error
            self._said[orchestrator] = (time.monotonic(), said)
            return said


async def _ask(channel: grpc.aio.Channel, timeout_s: float) -> str:
    """Ask for health; any answer but a refusal counts, because a node that drains lives. Gives why it failed."""
    stub: Any = health_pb2_grpc.HealthStub(channel)
    try:
        await stub.Check(health_pb2.HealthCheckRequest(), timeout=timeout_s)
    except grpc.aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            return f"no answer in {timeout_s:g} s"
        details = (error.details() or "").split(";")[0][:200]
        return f"{error.code().name.lower().replace('_', ' ')}: {details}"
    return ""
