"""The dispatcher's client of one node: a channel, and the calls over it as plain methods.

Blocks travel in messages of at most 4 MiB and are verified on both ends.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import grpc

from dim_pipelines.content.store import Block
from dim_pipelines.dispatch.tunnel import Tunnel
from dim_pipelines.domain.cid import Cid
from dim_pipelines.domain.node import NodeDescription
from dim_pipelines.errors import ContentMismatch
from dim_pipelines.wire import codec
from dim_pipelines.wire.channel import open_channel
from dim_pipelines.wire.status import from_rpc_error
from dim_pipelines.wire.tls import ClientKeys, PinnedPeer
from dim_pipelines.wire.v1 import blocks_pb2, blocks_pb2_grpc, node_pb2, node_pb2_grpc

MESSAGE_BYTES: Final = 4 << 20
"""Bytes of blocks in one message, at most."""
CALL_S: Final = 5.0
"""Seconds that a small call may take."""
TRANSFER_S: Final = 120.0
"""Seconds that one call of Get or Put may take."""
_HAVE_CIDS: Final = 8192

WorkCall = grpc.aio.StreamStreamCall[node_pb2.DispatcherMessage, node_pb2.NodeMessage]


class NodeClient:
    """One node.

    Attributes:
        address: where it listens, or the end of a tunnel to it.
    """

    def __init__(
        self,
        address: str,
        *,
        peer: PinnedPeer | None = None,
        keys: ClientKeys | None = None,
        tunnel: Tunnel | None = None,
    ) -> None:
        """Make the channel; it connects when it is first used.

        Args:
            address: `unix:PATH`, or `HOST:PORT`; without `peer` on loopback.
            peer: the node to expect; TLS is spoken with it.
            keys: what this side shows; only with `peer`.
            tunnel: what the address is the end of; closed with the client.

        Raises:
            ConfigurationError: the address is malformed, or not local where there is no `peer`.
        """
        self.address = address
        self._tunnel = tunnel
        self._channel = open_channel(address, peer=peer, client=keys)
        self._node = node_pb2_grpc.NodeServiceStub(self._channel)
        self._blocks = blocks_pb2_grpc.BlockServiceStub(self._channel)

    async def describe(self, timeout: float = CALL_S) -> NodeDescription:
        """Ask what the node is.

        Raises:
            NodeUnreachable: it does not answer.
        """
        with _translated():
            return codec.description_from_wire(
                await self._node.DescribeNode(node_pb2.DescribeNodeRequest(), timeout=timeout)
            )

    def work(self) -> WorkCall:
        """Open a work stream; `wire.session` says what goes over it."""
        return self._node.Work(None)

    async def warm(
        self, model: Cid, signatures: Sequence[Cid], batch_rows: int
    ) -> AsyncIterator[node_pb2.WarmProgress]:
        """Load a model ahead of its first task.

        Raises:
            DimError: as the node says.
        """
        request = node_pb2.WarmModelRequest(model=model, signatures=signatures, batch_rows=batch_rows)
        with _translated():
            async for progress in self._node.WarmModel(request):
                yield progress

    async def have(self, cids: Sequence[Cid]) -> frozenset[Cid]:
        """Ask which of these blocks the node has.

        Raises:
            NodeUnreachable: it does not answer.
        """
        found: set[Cid] = set()
        with _translated():
            for start in range(0, len(cids), _HAVE_CIDS):
                request = blocks_pb2.HaveRequest(cids=cids[start : start + _HAVE_CIDS])
                reply = await self._blocks.Have(request, timeout=TRANSFER_S)
                found.update(codec.cid_from_wire(raw) for raw in reply.cids)
        return frozenset(found)

    async def put(self, blocks: Iterable[Block]) -> int:
        """Give blocks to the node; returns their bytes.

        Raises:
            ContentError: the node cannot store them.
            NodeUnreachable: it does not answer.
        """
        with _translated():
            reply = await self._blocks.Put(_messages(blocks), timeout=TRANSFER_S)
        return int(reply.bytes)

    async def get(self, cids: Sequence[Cid]) -> AsyncIterator[Block]:
        """Fetch blocks in order, verified.

        Raises:
            ContentNotFound: the node has not got one of them.
            ContentMismatch: it sent something else.
            NodeUnreachable: it does not answer.
        """
        position = 0
        with _translated():
            async for message in self._blocks.Get(blocks_pb2.GetRequest(cids=cids), timeout=TRANSFER_S):
                for block in message.blocks:
                    if position >= len(cids) or block.cid != cids[position] or not cids[position].names(block.data):
                        wanted = cids[position] if position < len(cids) else "nothing more"
                        raise ContentMismatch(f"the node sent bytes that are not the block asked for ({wanted})")
                    yield Block(cids[position], block.data)
                    position += 1
        if position != len(cids):
            raise ContentMismatch(f"the node sent {position} of {len(cids)} blocks")

    async def close(self) -> None:
        """Close the channel; calls in flight end."""
        await self._channel.close(None)
        if self._tunnel is not None:
            await self._tunnel.close()


def _messages(blocks: Iterable[Block]) -> Iterator[blocks_pb2.Blocks]:
    message, size = blocks_pb2.Blocks(), 0
    for block in blocks:
        if message.blocks and size + len(block.data) > MESSAGE_BYTES:
            yield message
            message, size = blocks_pb2.Blocks(), 0
        message.blocks.add(cid=block.cid, data=block.data)
        size += len(block.data)
    if message.blocks:
        yield message


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error) from error
