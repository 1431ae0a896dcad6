"""Telling many waiting streams that something has changed, without a queue for any of them."""

from __future__ import annotations

import asyncio


class Changes:
    """A bell that whoever waits hears once; who comes later waits for the next."""

    def __init__(self) -> None:
        """Begin silent."""
        self._next = asyncio.Event()

    def ring(self) -> None:
        """Wake all that wait."""
        rung, self._next = self._next, asyncio.Event()
        rung.set()

    @property
    def next(self) -> asyncio.Event:
        """The next ring: take it before looking at what may change, wait for it afterwards."""
        return self._next


async def heard(ring: asyncio.Event, timeout_s: float) -> bool:
    """Wait for a ring, at most some seconds; tell whether it rang."""
    try:
        async with asyncio.timeout(timeout_s):
            await ring.wait()
    except TimeoutError:
        return False
    return True
