"""The protocol of the bus: topics of small signed hints."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Final, Protocol

MAX_BODY_BYTES: Final = 16 << 10
"""The largest body of a hint."""


@dataclass(frozen=True, slots=True)
class Hint:
    """A hint whose signature was checked; whether the sender is a member is the subscriber's question.

    Attributes:
        topic: what it is about: `nodes`, `roster`.
        sender: Ed25519 public key, 32 bytes.
        sequence: grows per sender.
        body: what it says, at most 16 KiB.
    """

    topic: str
    sender: bytes
    sequence: int
    body: bytes


class Bus(Protocol):
    """A bus of one network, with the key of one sender."""

    async def publish(self, topic: str, body: bytes) -> None:
        """Send a hint to whoever listens; calls take turns.

        Raises:
            InputError: the body is too large.
            ContentUnavailable: the bus does not answer.
        """
        ...

    def subscribe(self, topic: str) -> AbstractAsyncContextManager[AsyncIterator[Hint]]:
        """Listen while the block runs: valid hints of other senders and of this one, each once, in order per sender.

        A slow listener loses the oldest hints, never memory. A subscription survives a restart of what carries it.
        """
        ...

    async def close(self) -> None:
        """Give back what the bus holds."""
        ...
