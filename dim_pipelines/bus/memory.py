"""A bus in memory: between the parts of one process, and the twin that tests use."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Final
from weakref import WeakValueDictionary

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dim_pipelines.bus.bus import Hint
from dim_pipelines.bus.inbox import Inbox
from dim_pipelines.bus.message import sign_hint
from dim_pipelines.bus.sequence import Sequence


class MemoryHub:
    """What several memory buses share: who listens to what. A test may lose, repeat and reorder by `carry`."""

    def __init__(self) -> None:
        """Make a hub with nobody on it."""
        self.inboxes: set[tuple[str, Inbox]] = set()

    def carry(self, topic: str, raw: bytes, carrier: str = "memory") -> None:
        """Bring a message to all who listen to the topic."""
        for listened, inbox in list(self.inboxes):
            if listened == topic:
                inbox.offer(raw, carrier)


_HUBS: Final[WeakValueDictionary[str, MemoryHub]] = WeakValueDictionary()


def hub_of(network: str) -> MemoryHub:
    """Give the hub that all parts of this process share for a network, while one of them uses it."""
    hub = _HUBS.get(network)
    if hub is None:
        hub = _HUBS[network] = MemoryHub()
    return hub


class MemoryBus:
    """A bus of one network, on a hub.

    Attributes:
        dropped: why → how many messages all subscriptions dropped, as of `Inbox`.
    """

    def __init__(
        self,
        network: str,
        key: Ed25519PrivateKey,
        hub: MemoryHub | None = None,
        clock_ms: Callable[[], int] | None = None,
    ) -> None:
        """Make a bus.

        Args:
            network: IPNS name of the network's root key.
            key: the sender's.
            hub: the process's own for this network when left out.
            clock_ms: Unix time in milliseconds, for the sequences.
        """
        self._network = network
        self._key = key
        self._hub = hub or hub_of(network)
        self._sequence = Sequence(clock_ms)
        self.dropped: Counter[str] = Counter()

    async def publish(self, topic: str, body: bytes) -> None:
        """See `Bus.publish`."""
        self._hub.carry(topic, sign_hint(self._key, self._network, topic, self._sequence.next(), body))

    def subscribe(self, topic: str) -> AbstractAsyncContextManager[AsyncIterator[Hint]]:
        """See `Bus.subscribe`."""
        return self._subscribed(topic)

    async def close(self) -> None:
        """See `Bus.close`."""

    @asynccontextmanager
    async def _subscribed(self, topic: str) -> AsyncIterator[AsyncIterator[Hint]]:
        entry = (topic, Inbox(self._network, topic, dropped=self.dropped))
        self._hub.inboxes.add(entry)
        try:
            yield entry[1].hints()
        finally:
            self._hub.inboxes.discard(entry)
