"""BlockService over any content store: every block verified, every request bounded.

The store verifies what it reads and what it is given; here are the limits, and the grouping of small blocks.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final

import grpc

from dim_pipelines.content.store import MAX_BLOCK_BYTES, Block, ContentStore
from dim_pipelines.errors import ContentMismatch, InputError, QuotaExceeded
from dim_pipelines.telemetry.metrics import NodeMetrics
from dim_pipelines.wire.codec import cid_from_wire
from dim_pipelines.wire.status import to_status
from dim_pipelines.wire.v1 import blocks_pb2, blocks_pb2_grpc

MAX_CIDS: Final = 100_000
"""The most CIDs in one `Have` or `Get`."""
MAX_GROUP_BYTES: Final = 4 << 20
"""The most bytes of blocks in one message."""
MAX_GROUP_BLOCKS: Final = 4096
"""The most blocks in one message."""
MAX_PUT_BYTES: Final = 8 << 30
"""The most bytes that one `Put` may bring; a larger transfer takes several."""

Context = grpc.aio.ServicerContext[Any, Any]


class BlockServicer(blocks_pb2_grpc.BlockServiceServicer):
    """Serves the blocks of one store."""

    def __init__(self, store: ContentStore, metrics: NodeMetrics) -> None:
        """Serve `store`."""
        self._store = store
        self._metrics = metrics

    async def Have(self, request: blocks_pb2.HaveRequest, context: Context) -> blocks_pb2.HaveReply:
        """Tell which blocks are here."""
        cids = [cid_from_wire(raw) for raw in _bounded(request.cids)]
        here = await self._store.have(cids)
        return blocks_pb2.HaveReply(cids=[cid for cid in cids if cid in here])

    async def Get(self, request: blocks_pb2.GetRequest, context: Context) -> AsyncIterator[blocks_pb2.Blocks]:
        """Stream blocks in the order asked for, as many in a message as fit."""
        cids = [cid_from_wire(raw) for raw in _bounded(request.cids)]
        group: list[blocks_pb2.Block] = []
        size = 0
        async for block in self._store.get_many(cids):
            if group and (size + len(block.data) > MAX_GROUP_BYTES or len(group) >= MAX_GROUP_BLOCKS):
                yield blocks_pb2.Blocks(blocks=group)
                group, size = [], 0
            group.append(blocks_pb2.Block(cid=block.cid, data=block.data))
            size += len(block.data)
            self._metrics.blocks.labels("get").inc()
        if group:
            yield blocks_pb2.Blocks(blocks=group)

    async def Put(self, request_iterator: AsyncIterator[blocks_pb2.Blocks], context: Context) -> blocks_pb2.PutReply:
        """Store blocks message by message; what came before a bad one stays."""
        count = size = 0
        try:
            async for message in request_iterator:
                blocks = [Block(cid_from_wire(item.cid), item.data) for item in message.blocks]
                size += _checked_size(blocks)
                if size > MAX_PUT_BYTES:
                    raise QuotaExceeded(f"one Put brings at most {MAX_PUT_BYTES} bytes")
                await self._store.put(blocks)
                count += len(blocks)
                self._metrics.blocks.labels("put").inc(len(blocks))
        except ContentMismatch as error:
            # A read that finds other bytes is DATA_LOSS; here it is the caller who sent them.
            _, message_text, metadata = to_status(error)
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, message_text, metadata)
        return blocks_pb2.PutReply(blocks=count, bytes=size)


def _bounded(cids: Any) -> Any:
    if len(cids) > MAX_CIDS:
        raise QuotaExceeded(f"{len(cids)} CIDs in one request, at most {MAX_CIDS} are taken")
    return cids


def _checked_size(blocks: list[Block]) -> int:
    sizes = [len(block.data) for block in blocks]
    if len(blocks) > MAX_GROUP_BLOCKS or sum(sizes) > MAX_GROUP_BYTES:
        raise InputError(f"a message has at most {MAX_GROUP_BYTES} bytes in {MAX_GROUP_BLOCKS} blocks")
    if max(sizes, default=0) > MAX_BLOCK_BYTES:
        raise InputError(f"a block has at most {MAX_BLOCK_BYTES} bytes")
    return sum(sizes)
