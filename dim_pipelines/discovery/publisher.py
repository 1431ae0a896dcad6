"""The publisher of a node's record: the same signed bytes by every road, again and again; any one road is enough.

A road is a way to those who want to know: the name service, the bus, a call to the orchestrators. Each has a task of
its own, because one may hang for 40 s; what waits for it is only ever the newest record.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dim_pipelines.bus.bus import Bus
from dim_pipelines.discovery.announcement import write_announcement
from dim_pipelines.discovery.names import NameService
from dim_pipelines.discovery.record import make_node_record, name_of
from dim_pipelines.discovery.sequences import SequenceFile
from dim_pipelines.domain.advertisement import RecordFields
from dim_pipelines.errors import DimError, RolledBack

NODES: Final = "nodes"
"""The topic of hints about nodes' records."""
INTERVAL_S: Final = 60.0
"""Between two records, give or take a tenth: a third of a record's life."""
COALESCE_S: Final = 0.1
"""Changes that come together make one record."""
FIRST_PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 30.0
"""Before a road that failed is tried again, doubled each time."""

_log = logging.getLogger(__name__)


class Road(Protocol):
    """A way to those who want to know."""

    async def send(self, name: str, raw: bytes) -> None:
        """Bring a record there.

        Raises:
            DimError: it did not arrive.
        """
        ...


@dataclass(frozen=True, slots=True)
class NameRoad:
    """The road by the name service."""

    names: NameService

    async def send(self, name: str, raw: bytes) -> None:
        """See `Road.send`."""
        await self.names.put(name, raw)


@dataclass(frozen=True, slots=True)
class BusRoad:
    """The road by the bus."""

    bus: Bus

    async def send(self, name: str, raw: bytes) -> None:
        """See `Road.send`."""
        await self.bus.publish(NODES, write_announcement(name, raw))


@dataclass(frozen=True, slots=True)
class RoadState:
    """How a road does.

    Attributes:
        sent: how many records arrived.
        failures: how many tries failed.
        ok_ms: Unix time in milliseconds of the last that arrived; 0: none yet.
        sequence: the sequence of the last that arrived; 0: none yet.
        error: why the last try failed; empty when it did not.
    """

    sent: int = 0
    failures: int = 0
    ok_ms: int = 0
    sequence: int = 0
    error: str = ""


class _Lane:
    """A road, what waits for it, and how it does."""

    def __init__(self, road: Road) -> None:
        self.road = road
        self.state = RoadState()
        self.waiting: tuple[int, bytes] | None = None
        self.arrived = asyncio.Event()

    def put(self, sequence: int, raw: bytes) -> None:
        self.waiting = (sequence, raw)
        self.arrived.set()


class Publisher:
    """Makes a node's records and sends them."""

    def __init__(
        self,
        key: Ed25519PrivateKey,
        make_fields: Callable[[], RecordFields],
        roads: Mapping[str, Road],
        sequences: Path,
        *,
        clock_ms: Callable[[], int] | None = None,
        interval_s: float = INTERVAL_S,
    ) -> None:
        """Say what is published; `run` does it.

        Args:
            key: the node's.
            make_fields: gives what the node says of itself now.
            roads: by name.
            sequences: the file in which the last sequence is kept.
            clock_ms: Unix time in milliseconds.
            interval_s: between two records, give or take a tenth.
        """
        self.name = name_of(key)
        self.record: bytes | None = None
        self._key = key
        self._make_fields = make_fields
        self._lanes = {name: _Lane(road) for name, road in roads.items()}
        self._clock_ms = clock_ms or (lambda: time.time_ns() // 1_000_000)
        self._sequences = SequenceFile(sequences, self._clock_ms)
        self._interval_s = interval_s
        self._changed = asyncio.Event()

    def changed(self) -> None:
        """Publish soon: something that the record says is different now."""
        self._changed.set()

    def roads(self) -> dict[str, RoadState]:
        """Tell how each road does."""
        return {name: lane.state for name, lane in self._lanes.items()}

    async def run(self) -> None:
        """Publish until cancelled; a road that fails is tried again, and disturbs no other."""
        async with asyncio.TaskGroup() as group:
            for name, lane in self._lanes.items():
                group.create_task(self._drive(name, lane), name=f"publish by {name}")
            while True:
                self._changed.clear()
                await self._publish()
                pause_s = self._interval_s * random.uniform(0.9, 1.1)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause_s):
                        await self._changed.wait()
                        await asyncio.sleep(COALESCE_S)

    async def _publish(self) -> None:
        try:
            fields = self._make_fields()
            sequence = await asyncio.to_thread(self._sequences.next, self.name)
            raw = make_node_record(self._key, fields, sequence, self._clock_ms())
        except DimError as error:
            _log.error("this node's record cannot be made: %s", error.message)
            return
        self.record = raw
        for lane in self._lanes.values():
            lane.put(sequence, raw)

    async def _drive(self, name: str, lane: _Lane) -> None:
        pause_s = FIRST_PAUSE_S
        while True:
            await lane.arrived.wait()
            lane.arrived.clear()
            assert lane.waiting is not None
            sequence, raw = lane.waiting
            try:
                await lane.road.send(self.name, raw)
            except DimError as error:
                if not lane.state.error:
                    _log.warning("the record was not published by %s: %s", name, error.message)
                lane.state = replace(lane.state, failures=lane.state.failures + 1, error=error.message)
                # a newer record is no reason to hurry a road that fails
                await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))
                pause_s = min(LONGEST_PAUSE_S, pause_s * 2)
                if isinstance(error, RolledBack):
                    self.changed()  # the same bytes will never be taken: make newer ones
                else:
                    lane.arrived.set()
            else:
                if lane.state.error:
                    _log.info("the record is published by %s again", name)
                pause_s = FIRST_PAUSE_S
                lane.state = RoadState(lane.state.sent + 1, lane.state.failures, self._clock_ms(), sequence)
