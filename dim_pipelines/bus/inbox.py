"""What a listener takes and what it drops: size, rate, signature, sequence; pure but for the queue that wakes it.

The order matters: what is cheap and needs no trust comes first, so that a flood costs little. The rate of what
carries the hints (a Kubo peer, whose messages libp2p has signed) is limited before a signature is checked, the rate
of the sender after it, because before it anybody can name any sender.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Callable
from typing import Final

from dim_pipelines.bus.bus import Hint
from dim_pipelines.bus.message import read_hint
from dim_pipelines.bus.rate_limit import RateLimit
from dim_pipelines.errors import ProtocolError

SENDERS: Final = 10_000
"""How many senders and carriers are remembered; the one heard of longest ago is forgotten first."""
SENDER_RATE: Final = 10.0
"""Hints per second of one sender: a publisher sends at most ten a second, mostly one a minute."""
SENDER_BURST: Final = 50.0
CARRIER_RATE: Final = 200.0
"""Hints per second by one carrier: several senders may share a Kubo."""
CARRIER_BURST: Final = 1_000.0
WAITING: Final = 1_000
"""How many hints wait for a slow listener; then the oldest is lost."""


class Inbox:
    """What one subscription takes.

    Attributes:
        dropped: why → how many hints were dropped: `carrier_rate`, `invalid`, `repeated`, `sender_rate`, `slow`.
    """

    def __init__(
        self,
        network: str,
        topic: str,
        clock: Callable[[], float] = time.monotonic,
        dropped: Counter[str] | None = None,
    ) -> None:
        """Make an inbox.

        Args:
            network: IPNS name of the network's root key.
            topic: what it takes hints about.
            clock: gives seconds.
            dropped: where drops are counted; its own when left out.
        """
        self.dropped = Counter[str]() if dropped is None else dropped
        self._network = network
        self._topic = topic
        self._newest: OrderedDict[bytes, int] = OrderedDict()
        self._carriers: RateLimit[str] = RateLimit(CARRIER_RATE, CARRIER_BURST, clock)
        self._senders: RateLimit[bytes] = RateLimit(SENDER_RATE, SENDER_BURST, clock)
        self._waiting: deque[Hint] = deque()
        self._arrived = asyncio.Event()

    def offer(self, raw: bytes, carrier: str) -> bool:
        """Take a message that a carrier brought, or drop it and count why."""
        if not self._carriers.allows(carrier):
            return self._drop("carrier_rate")
        try:
            hint = read_hint(raw, self._network, self._topic)
        except ProtocolError:
            return self._drop("invalid")
        if hint.sequence <= self._newest.get(hint.sender, -1):
            return self._drop("repeated")
        if not self._senders.allows(hint.sender):
            return self._drop("sender_rate")
        self._newest[hint.sender] = hint.sequence
        self._newest.move_to_end(hint.sender)
        if len(self._newest) > SENDERS:
            self._newest.popitem(last=False)
        if len(self._waiting) >= WAITING:
            self._waiting.popleft()
            self._drop("slow")
        self._waiting.append(hint)
        self._arrived.set()
        return True

    async def hints(self) -> AsyncIterator[Hint]:
        """Give the hints as they come, for ever."""
        while True:
            while self._waiting:
                yield self._waiting.popleft()
            self._arrived.clear()
            await self._arrived.wait()

    def _drop(self, why: str) -> bool:
        self.dropped[why] += 1
        return False
