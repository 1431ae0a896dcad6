"""A channel whose client certificate is renewed while it is in use.

gRPC fixes the credentials of a channel when it is made. This one makes a fresh inner channel when the certificate has
changed: RPCs under way end on the old connection, the next ones begin on the new.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, Self

import grpc

Pair = tuple[bytes, bytes]
"""PEM of a key and of its certificate."""
_LONGEST_RPC_S: Final = 7 * 24 * 3600.0


class RenewingChannel(grpc.aio.Channel):
    """Passes each RPC to the inner channel of the newest certificate."""

    def __init__(self, current: Callable[[], Pair], connect: Callable[[Pair], grpc.aio.Channel]) -> None:
        """Make the first inner channel.

        Args:
            current: gives the newest key and certificate; cheap, it is asked before each RPC.
            connect: makes a channel that shows them.
        """
        self._current, self._connect = current, connect
        self._shown = current()
        self._inner = connect(self._shown)
        self._generation = 0
        self._closing: set[asyncio.Task[None]] = set()
        self._retired: set[grpc.aio.Channel] = set()
        self._closed = False

    def _newest(self) -> tuple[int, grpc.aio.Channel]:
        if not self._closed and (pair := self._current()) != self._shown:
            old, self._inner, self._shown = self._inner, self._connect(pair), pair
            self._generation += 1
            self._retired.add(old)
            task = asyncio.get_running_loop().create_task(self._retire(old))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
        return self._generation, self._inner

    async def _retire(self, old: grpc.aio.Channel) -> None:
        await old.close(_LONGEST_RPC_S)  # returns when the last of its RPCs has ended
        self._retired.discard(old)

    def _callable(self, kind: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        made: tuple[int, Any] = (-1, None)

        def call(*given: Any, **named: Any) -> Any:
            nonlocal made
            generation, channel = self._newest()
            if made[0] != generation:
                made = (generation, getattr(channel, kind)(*arguments, **options))
            return made[1](*given, **named)

        return call

    def unary_unary(self, *arguments: Any, **options: Any) -> Any:
        """Give the method's callable."""
        return self._callable("unary_unary", arguments, options)

    def unary_stream(self, *arguments: Any, **options: Any) -> Any:
        """Give the method's callable."""
        return self._callable("unary_stream", arguments, options)

    def stream_unary(self, *arguments: Any, **options: Any) -> Any:
        """Give the method's callable."""
        return self._callable("stream_unary", arguments, options)

    def stream_stream(self, *arguments: Any, **options: Any) -> Any:
        """Give the method's callable."""
        return self._callable("stream_stream", arguments, options)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """Give the state of the newest connection."""
        return self._newest()[1].get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """Wait until the state is another."""
        await self._newest()[1].wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        """Wait until the connection stands."""
        await self._newest()[1].channel_ready()

    async def close(self, grace: float | None = None) -> None:
        """End all connections; RPCs under way have `grace` seconds."""
        self._closed = True
        for task in list(self._closing):
            task.cancel()
        await asyncio.gather(*self._closing, return_exceptions=True)
        await asyncio.gather(*(channel.close(grace) for channel in (*self._retired, self._inner)))
        self._retired.clear()

    async def __aenter__(self) -> Self:
        """Give the channel."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        await self.close()
