"""The relay to nodes that can only dial out: it hands byte tunnels from one stream to another, and reads none of them.

The rules stand in `link_table`. A tunnel is two RPCs: the caller's Connect, whose handler does the copying, and the
node's Dial, whose handler waits for the end of it. Chunks are checked and passed on as they came, one at a time in each
direction, so that a reader who stops stops the writer, and nothing is queued here.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final, TypeVar

import grpc
from google.protobuf.message import DecodeError

from dim_pipelines.domain.roster import Limits
from dim_pipelines.errors import DimError, NodeUnreachable, ProtocolError, Unauthenticated
from dim_pipelines.orchestrator.link_table import (
    MAX_TUNNELS,
    PULSE_S,
    SESSION_BYTES,
    SILENT_S,
    Flow,
    Link,
    LinkTable,
    Session,
    standstill,
)
from dim_pipelines.telemetry.metrics import LinkMetrics
from dim_pipelines.wire.access import Peer
from dim_pipelines.wire.chunk import chunk_data
from dim_pipelines.wire.v1 import link_pb2

log = logging.getLogger(__name__)

FIRST_S: Final = 5.0
"""How long a stream may take to say what it is for, and a node to dial back, in seconds."""
_TICK_S: Final = 5.0  # how often a tunnel is looked at
_FIRST_BYTES: Final = 256  # the longest first chunk: a name has 62 characters
_SERVICE: Final = link_pb2.DESCRIPTOR.services_by_name["LinkService"]

_Context = grpc.aio.ServicerContext[Any, Any]
_T = TypeVar("_T")
_M = TypeVar("_M", link_pb2.AttachMessage, link_pb2.Chunk)


class _Tunnel:
    """A session with its two streams."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.node: asyncio.Future[_Context] = asyncio.get_running_loop().create_future()
        self.ended = asyncio.Event()
        self.error: DimError | None = None

    def end(self, error: DimError | None = None) -> None:
        """End both streams; the first reason stays."""
        if not self.ended.is_set():
            self.error = error
            self.ended.set()


class _Attachment:
    """A link with what is to be told to its node."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.wanted: asyncio.Queue[bytes] = asyncio.Queue()  # never more than the node's tunnels
        self.lost: asyncio.Future[DimError] = asyncio.get_running_loop().create_future()

    def lose(self, error: DimError) -> None:
        """End the attachment; the first reason stays."""
        if not self.lost.done():
            self.lost.set_result(error)


class LinkServicer:
    """Serves `LinkService`.

    Not derived from the generated servicer: `Dial` and `Connect` take and give the bytes of chunks, undecoded.
    """

    def __init__(
        self,
        peer_of: Callable[[Any], Peer | None],
        limits: Callable[[str], Limits],
        metrics: LinkMetrics,
        *,
        on_attached: Callable[[str], None],
        on_detached: Callable[[str], None],
        max_tunnels: int = MAX_TUNNELS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin without links.

        Args:
            peer_of: gives who calls, from the RPC's context; None for a caller without a certificate, who is refused.
            limits: what a member may use, by IPNS name.
            metrics: where to count.
            on_attached: is told the name of each node that attaches, again when it attaches anew.
            on_detached: is told the name of each node that is attached no more.
            max_tunnels: the most tunnels at a time, in all.
            clock: seconds of a monotonic clock.
        """
        self._peer_of = peer_of
        self._metrics = metrics
        self._on_attached = on_attached
        self._on_detached = on_detached
        self._clock = clock
        self._table = LinkTable(limits, max_tunnels=max_tunnels)
        self._attachments: dict[str, _Attachment] = {}
        self._tunnels: dict[bytes, _Tunnel] = {}
        self._closed = False

    @property
    def attached(self) -> frozenset[str]:
        """The names of the nodes that are attached here."""
        return self._table.attached

    def register(self, server: grpc.aio.Server) -> str:
        """Add the service to a server and give its full name."""
        handlers = {
            "Attach": grpc.stream_stream_rpc_method_handler(
                self.Attach,
                request_deserializer=link_pb2.AttachMessage.FromString,
                response_serializer=link_pb2.AttachEvent.SerializeToString,
            ),
            "Dial": grpc.stream_stream_rpc_method_handler(self.Dial),
            "Connect": grpc.stream_stream_rpc_method_handler(self.Connect),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE.full_name, handlers),))
        return _SERVICE.full_name

    def close(self) -> None:
        """End all attachments, so that their nodes turn to another orchestrator at once, and all tunnels."""
        self._closed = True
        for attachment in self._attachments.values():
            attachment.lose(NodeUnreachable("the orchestrator is stopping"))
        for tunnel in self._tunnels.values():
            tunnel.end(NodeUnreachable("the orchestrator is stopping"))

    async def Attach(self, requests: Any, context: _Context) -> None:
        """Hold a node's attachment until either side goes."""
        async with self._stream(context, "Attach") as peer:
            message = await _first(context, link_pb2.AttachMessage)
            hello = message.hello
            if message.WhichOneof("message") != "hello" or hello.name != peer.name or len(hello.boot) > 64:
                raise ProtocolError("an attachment begins with a Hello under the caller's own name")
            link, replaced = self._table.attach(peer.name, hello.boot, self._clock())
            if replaced is not None:
                self._attachments[peer.name].lose(NodeUnreachable("the node has attached anew"))
            attachment = self._attachments[peer.name] = _Attachment(link)
            self._metrics.attached.set(len(self._table.attached))
            self._on_attached(peer.name)
            listening = asyncio.create_task(self._listen(attachment, context))
            try:
                await self._tell(attachment, context)
            finally:
                listening.cancel()
                await asyncio.wait([listening])
                if self._table.detach(link):
                    del self._attachments[peer.name]
                    self._metrics.attached.set(len(self._table.attached))
                    self._on_detached(peer.name)

    async def Dial(self, requests: Any, context: _Context) -> None:
        """Hold the node's end of a tunnel until the tunnel ends."""
        async with self._stream(context, "Dial") as peer:
            chunk = await _first(context, link_pb2.Chunk)
            if chunk.WhichOneof("chunk") != "session" or len(chunk.session) != SESSION_BYTES:
                raise ProtocolError("the first chunk of Dial names the session")
            tunnel = self._tunnels[self._table.claim(peer.name, chunk.session).id]
            try:
                if not tunnel.node.done():
                    tunnel.node.set_result(context)
                await tunnel.ended.wait()
            finally:
                tunnel.end(NodeUnreachable("the node has left the tunnel"))
            if tunnel.error is not None:
                raise tunnel.error

    async def Connect(self, requests: Any, context: _Context) -> None:
        """Carry a caller's tunnel."""
        async with self._stream(context, "Connect") as peer:
            chunk = await _first(context, link_pb2.Chunk)
            if chunk.WhichOneof("chunk") != "node":
                raise ProtocolError("the first chunk of Connect names the node")
            session, _ = self._table.connect(peer.name, chunk.node, self._clock())
            tunnel = self._tunnels[session.id] = _Tunnel(session)
            self._metrics.tunnels.set(self._table.tunnels)
            try:
                self._attachments[session.node].wanted.put_nowait(session.id)
                await self._splice(tunnel, context, await self._dialled(tunnel))
                tunnel.end()
            except DimError as error:
                tunnel.end(error)
                raise
            finally:
                tunnel.end(NodeUnreachable("the caller has left the tunnel"))
                del self._tunnels[session.id]
                self._table.release(session)
                self._metrics.tunnels.set(self._table.tunnels)

    @asynccontextmanager
    async def _stream(self, context: _Context, method: str) -> AsyncIterator[Peer]:
        """Count a stream of the caller; refusals are counted by their code."""
        counted = False
        peer = self._peer_of(context)
        try:
            if peer is None:
                raise Unauthenticated("links are for members with a certificate")
            if self._closed:
                raise NodeUnreachable("the orchestrator is stopping")
            self._table.open_stream(peer.name, self._clock())
            counted = True
            yield peer
        except DimError as error:
            self._metrics.ended.labels(method, error.code).inc()
            raise
        else:
            self._metrics.ended.labels(method, "done").inc()
        finally:
            if counted and peer is not None:
                self._table.close_stream(peer.name)

    async def _listen(self, attachment: _Attachment, context: _Context) -> None:
        """Take in a node's pulses."""
        try:
            while isinstance(message := await context.read(), link_pb2.AttachMessage):
                if message.WhichOneof("message") != "pulse":
                    raise ProtocolError("an attachment carries nothing but pulses")
                attachment.link.heard(self._clock())
            attachment.lose(NodeUnreachable("the node has ended its attachment"))
        except DimError as error:
            attachment.lose(error)
        except _BROKEN as error:
            attachment.lose(NodeUnreachable(f"the node's attachment broke: {error}"))

    async def _tell(self, attachment: _Attachment, context: _Context) -> None:
        """Tell the node who wants it, and that the orchestrator lives, until the attachment is lost."""
        link = attachment.link
        event = link_pb2.AttachEvent(attached=link_pb2.Attached(max_sessions=link.max_sessions))
        pulse = link_pb2.AttachEvent(pulse=link_pb2.Pulse())
        while True:
            # A node that does not read is as silent as one that does not speak.
            await _within(SILENT_S, context.write(event), "the node does not read its attachment")
            wanted = asyncio.ensure_future(attachment.wanted.get())
            news: set[asyncio.Future[Any]] = {wanted, attachment.lost}
            try:
                await asyncio.wait(news, timeout=PULSE_S, return_when=asyncio.FIRST_COMPLETED)
            finally:
                wanted.cancel()
            if link.silent(self._clock()):
                attachment.lose(NodeUnreachable(f"the node was silent for {SILENT_S:.0f} s"))
            if attachment.lost.done():
                raise attachment.lost.result()
            if wanted.done():
                event = link_pb2.AttachEvent(dial_back=link_pb2.DialBack(session=wanted.result()))
            else:
                event = pulse

    async def _dialled(self, tunnel: _Tunnel) -> _Context:
        """Wait for the node's stream."""
        ended = asyncio.ensure_future(tunnel.ended.wait())
        news: set[asyncio.Future[Any]] = {tunnel.node, ended}
        try:
            await asyncio.wait(news, timeout=FIRST_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ended.cancel()
        if tunnel.node.done() and not tunnel.ended.is_set():
            return tunnel.node.result()
        tunnel.node.cancel()
        raise tunnel.error or NodeUnreachable(f"the node did not dial back within {FIRST_S:.0f} s")

    async def _splice(self, tunnel: _Tunnel, caller: _Context, node: _Context) -> None:
        """Copy both ways until both halves are closed, or one stream breaks, or nothing moves."""
        now = self._clock()
        flows = Flow(now), Flow(now)
        copies = {
            asyncio.create_task(self._copy(caller, node, flows[0], "caller", "node")),
            asyncio.create_task(self._copy(node, caller, flows[1], "node", "caller")),
        }
        ended = asyncio.create_task(tunnel.ended.wait())
        try:
            going: set[asyncio.Task[Any]] = set(copies)
            while going:
                done, _ = await asyncio.wait({*going, ended}, timeout=_TICK_S, return_when=asyncio.FIRST_COMPLETED)
                if tunnel.ended.is_set():
                    raise tunnel.error or NodeUnreachable("the tunnel has ended")
                for task in done & going:
                    task.result()
                    going.discard(task)
                if why := standstill(flows, self._clock()):
                    raise NodeUnreachable(f"the tunnel is ended: {why}")
        finally:
            for task in (*copies, ended):
                task.cancel()
            await asyncio.wait({*copies, ended})
            for flow, direction in zip(flows, ("in", "out"), strict=True):
                self._metrics.bytes.labels(direction).inc(flow.bytes)

    async def _copy(self, source: _Context, target: _Context, flow: Flow, giver: str, taker: str) -> None:
        while True:
            with _broken(f"the {giver} has left the tunnel"):
                raw = await source.read()
            if not isinstance(raw, bytes):
                raise NodeUnreachable(f"the {giver} has left the tunnel")
            data = chunk_data(raw)
            flow.waiting = self._clock()
            with _broken(f"the {taker} has left the tunnel"):
                await target.write(raw)
            flow.moved, flow.waiting = self._clock(), None
            if data is None:
                return
            flow.bytes += len(data)


# What grpc raises where a stream has ended under its reader or writer.
_BROKEN: Final = (grpc.aio.UsageError, grpc.aio.InternalError, asyncio.InvalidStateError, grpc.aio.AioRpcError)


@contextmanager
def _broken(message: str) -> Iterator[None]:
    try:
        yield
    except _BROKEN as error:
        raise NodeUnreachable(message) from error


async def _within(seconds: float, doing: Awaitable[_T], message: str) -> _T:
    try:
        async with asyncio.timeout(seconds):
            with _broken(message):
                return await doing
    except TimeoutError as error:
        raise NodeUnreachable(message) from error


async def _first(context: _Context, kind: type[_M]) -> _M:
    """Read the first message of a stream, of which there may be many that never say what they are for."""
    message = await _within(FIRST_S, context.read(), f"the stream said nothing for {FIRST_S:.0f} s")
    if isinstance(message, bytes):
        try:
            if len(message) > _FIRST_BYTES:
                raise ProtocolError(f"a first chunk of {len(message)} bytes")
            return kind.FromString(message)
        except DecodeError as error:
            raise ProtocolError("the first chunk cannot be read") from error
    if not isinstance(message, kind):
        raise ProtocolError("the stream ended before it began")
    return message
