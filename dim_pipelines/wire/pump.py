"""One end of a tunnel: bytes between a local socket and a stream of chunks, without a queue in between.

At most one chunk is under way in each direction, so who does not read stops who writes, all the way through the
tunnel. A half-close travels as a chunk of its own, because a gRPC server cannot end its half of a stream first.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import grpc

from dim_pipelines.errors import DimError, NodeUnreachable
from dim_pipelines.wire.channel import Address
from dim_pipelines.wire.chunk import CLOSED, MAX_DATA_BYTES, chunk_data, data_chunk
from dim_pipelines.wire.status import from_rpc_error

DIAL: Final = "/dim.v1.LinkService/Dial"
CONNECT: Final = "/dim.v1.LinkService/Connect"
_FAREWELL_S: Final = 5.0  # how long the other side may take to end a stream of which both halves are closed

TunnelCall = grpc.aio.StreamStreamCall[bytes, bytes]


class Relay(Protocol):
    """An orchestrator, as the roster names it: `identity.membership.Orchestrator`."""

    @property
    def name(self) -> str:
        """Its IPNS name."""
        ...

    @property
    def label(self) -> str:
        """Its name for people."""
        ...

    @property
    def addresses(self) -> Sequence[str]:
        """`HOST:PORT` of its server."""
        ...

    @property
    def certificate(self) -> bytes:
        """DER of what its server shows."""
        ...


@dataclass(slots=True)
class Moved:
    """Bytes that went into the tunnel (`sent`) and that came out of it (`received`)."""

    sent: int = 0
    received: int = 0


def open_tunnel_call(channel: grpc.aio.Channel, method: str) -> TunnelCall:
    """Open a stream of raw chunks; `method` is `DIAL` or `CONNECT`."""
    call: TunnelCall = channel.stream_stream(method, request_serializer=None, response_deserializer=None)(None)
    return call


async def connect_own(address: str) -> socket.socket:
    """Connect to a server of one's own, with which somebody else will speak TLS.

    Args:
        address: `unix:PATH`, or the `HOST:PORT` that it listens at.

    Raises:
        ConfigurationError: the address is malformed.
        NodeUnreachable: nobody listens there.
    """
    loop, where = asyncio.get_running_loop(), Address.parse(address, secure=True)
    local: socket.socket | None = None
    try:
        if where.path:
            local = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            local.setblocking(False)
            await loop.sock_connect(local, where.path)
        else:
            family, kind, protocol, _, place = (
                await loop.getaddrinfo(where.host, where.port, type=socket.SOCK_STREAM)
            )[0]
            local = socket.socket(family, kind, protocol)
            local.setblocking(False)
            local.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await loop.sock_connect(local, place)
    except BaseException as error:
        if local is not None:
            local.close()
        if isinstance(error, OSError):
            raise NodeUnreachable(f"nobody listens at {where}: {error.strerror}") from error
        raise
    return local


async def pump(local: socket.socket, call: TunnelCall, moved: Moved) -> None:
    """Carry bytes both ways until both halves are closed; the call has its first chunk already.

    The socket is left open and the call ended, whatever happens.

    Args:
        local: a connected socket that does not block.
        call: the tunnel.
        moved: is counted up while bytes move.

    Raises:
        DimError: why the tunnel broke, as the orchestrator says it.
        OSError: the local side broke.
    """
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(call.cancel)
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(_outward(local, call, moved))
                both.create_task(_inward(local, call, moved))
        except BaseExceptionGroup as group:
            raise await _reason(call, group) from group
        # The last chunk may still be on its way: the orchestrator ends the stream once it has passed it on.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FAREWELL_S):
                await call.code()


async def _outward(local: socket.socket, call: TunnelCall, moved: Moved) -> None:
    loop = asyncio.get_running_loop()
    while data := await loop.sock_recv(local, MAX_DATA_BYTES):
        await _sent(call.write(data_chunk(data)))
        moved.sent += len(data)
    await _sent(call.write(CLOSED))


async def _inward(local: socket.socket, call: TunnelCall, moved: Moved) -> None:
    loop = asyncio.get_running_loop()
    while True:
        raw = await _read(call)
        if not isinstance(raw, bytes):
            raise NodeUnreachable("the tunnel ended before its other end was closed")
        data = chunk_data(raw)
        if data is None:
            local.shutdown(socket.SHUT_WR)
            return
        await loop.sock_sendall(local, data)
        moved.received += len(data)


async def _read(call: TunnelCall) -> object:
    try:
        return await call.read()
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise NodeUnreachable("the channel of the tunnel was closed") from error  # grpc says that as a cancellation


async def _sent(write: Awaitable[None]) -> None:
    try:
        await write
    except (asyncio.InvalidStateError, grpc.aio.UsageError) as error:  # the stream has ended meanwhile
        raise NodeUnreachable("the tunnel has ended") from error


async def _reason(call: TunnelCall, group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Give the one reason of a break: what the orchestrator says, before what that entails here."""
    found = list(group.exceptions)
    if call.done() and not call.cancelled():
        code = await call.code()
        if code is not grpc.StatusCode.OK:
            ended = grpc.aio.AioRpcError(
                code, await call.initial_metadata(), await call.trailing_metadata(), await call.details(), None
            )
            return from_rpc_error(ended)
    for error in found:
        if isinstance(error, grpc.aio.AioRpcError):
            return from_rpc_error(error)
    return next((error for error in found if isinstance(error, DimError | OSError)), found[0])
