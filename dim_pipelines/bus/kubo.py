"""The bus over the pubsub of a Kubo: a topic per network and subject, and subscriptions that outlive a restart.

Kubo drops a message whose sequence is not above the last of its peer, so two that are published at once on one Kubo
race (HTTP 500 "validation ignored", pkc-js#224): calls of this process take turns, and one that lost against another
process is made again.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import logging
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dim_pipelines.bus.bus import Hint
from dim_pipelines.bus.inbox import Inbox
from dim_pipelines.bus.message import MAX_MESSAGE_BYTES, sign_hint
from dim_pipelines.bus.sequence import Sequence
from dim_pipelines.content.kubo_http import KuboHttp, KuboRefused
from dim_pipelines.errors import ConfigurationError, ContentUnavailable
from dim_pipelines.settings import Home

PUBLISH_S: Final = 10.0
"""How long a publish may take; 4 ms is usual."""
TRIES: Final = 4
FIRST_PAUSE_S: Final = 0.1
LONGEST_PAUSE_S: Final = 5.0
"""Between two tries to subscribe, doubled each time; a supervised Kubo is back after 0.1 to 1 s."""
SUBSCRIBE_S: Final = 5.0
"""How long entering a subscription waits for Kubo; then it goes on trying behind the block."""

_log = logging.getLogger(__name__)


class KuboBus:
    """A bus of one network through one Kubo.

    Attributes:
        dropped: why → how many messages all subscriptions dropped: those of `Inbox`, and `malformed`.
    """

    def __init__(
        self,
        address: str,
        network: str,
        key: Ed25519PrivateKey,
        *,
        home: Home | None = None,
        clock_ms: Callable[[], int] | None = None,
    ) -> None:
        """Make a bus; nothing is sent yet.

        Args:
            address: multiaddr or http URL of the Kubo's RPC.
            network: IPNS name of the network's root key.
            key: the sender's.
            home: where the Kubo's secret is looked for.
            clock_ms: Unix time in milliseconds, for the sequences.

        Raises:
            ConfigurationError: the address has no form that is known.
        """
        self.dropped: Counter[str] = Counter()
        self._http = KuboHttp(address, home)
        self._network = network
        self._key = key
        self._sequence = Sequence(clock_ms)
        self._turn = asyncio.Lock()
        self._listening: set[asyncio.Task[None]] = set()

    async def publish(self, topic: str, body: bytes) -> None:
        """See `Bus.publish`."""
        async with self._turn:
            raw = sign_hint(self._key, self._network, topic, self._sequence.next(), body)
            for left in reversed(range(TRIES)):
                try:
                    await self._http.call("pubsub/pub", self._multibase(topic), body=raw, timeout_s=PUBLISH_S)
                except KuboRefused as error:
                    if "validation ignored" not in error.message or not left:
                        raise ContentUnavailable(f"the Kubo does not publish: {error.message}") from error
                    await asyncio.sleep(random.uniform(0.01, 0.1))
                else:
                    return

    def subscribe(self, topic: str) -> AbstractAsyncContextManager[AsyncIterator[Hint]]:
        """See `Bus.subscribe`."""
        return self._subscribed(topic)

    async def close(self) -> None:
        """See `Bus.close`."""
        for task in self._listening:
            task.cancel()
        await asyncio.gather(*self._listening, return_exceptions=True)

    @asynccontextmanager
    async def _subscribed(self, topic: str) -> AsyncIterator[AsyncIterator[Hint]]:
        inbox = Inbox(self._network, topic, dropped=self.dropped)
        connected = asyncio.Event()
        task = asyncio.create_task(self._listen(topic, inbox, connected), name=f"bus {topic}")
        self._listening.add(task)
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SUBSCRIBE_S):
                    await connected.wait()
            yield inbox.hints()
        finally:
            task.cancel()
            await asyncio.wait([task])
            self._listening.discard(task)

    async def _listen(self, topic: str, inbox: Inbox, connected: asyncio.Event) -> None:
        pause_s = FIRST_PAUSE_S
        told = False
        while True:
            try:
                async with self._http.lines("pubsub/sub", self._multibase(topic)) as messages:
                    connected.set()
                    pause_s, told = FIRST_PAUSE_S, False
                    async for message in messages:
                        self._take(message, inbox)
                said = "it ended the subscription"
            except (ContentUnavailable, ConfigurationError, KuboRefused) as error:
                said = error.message
            if not told:
                _log.warning("no hints about %s for a while: %s", topic, said)
                told = True
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))
            pause_s = min(LONGEST_PAUSE_S, pause_s * 2)

    def _take(self, message: Any, inbox: Inbox) -> None:
        try:
            data, carrier = message["data"], message["from"]
            raw = _bytes_of(data)
        except (KeyError, TypeError, ValueError, binascii.Error):
            self.dropped["malformed"] += 1
            return
        inbox.offer(raw, str(carrier)[:100])

    def _multibase(self, topic: str) -> str:
        return "u" + base64.urlsafe_b64encode(f"dim/{self._network}/{topic}".encode()).decode().rstrip("=")


def _bytes_of(text: object) -> bytes:
    """Read multibase base64url (`u…`): https://github.com/multiformats/multibase."""
    if not isinstance(text, str) or not text.startswith("u") or len(text) > 2 * MAX_MESSAGE_BYTES:
        raise ValueError("not base64url")
    return base64.urlsafe_b64decode(text[1:] + "=" * (-(len(text) - 1) % 4))
