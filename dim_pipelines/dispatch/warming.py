"""Bring a model to nodes ahead of the first batch, so that no node loads it while another computes."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from dim_pipelines.content.folders import tree_blocks
from dim_pipelines.content.store import Block
from dim_pipelines.errors import DimError, NodeUnreachable
from dim_pipelines.scheduling.attendance import Presence

if TYPE_CHECKING:
    from dim_pipelines.content.models import ModelPackage
    from dim_pipelines.content.store import ContentStore
    from dim_pipelines.dispatch.node_pool import NodePool


async def warm_nodes(
    pool: NodePool, package: ModelPackage, store: ContentStore, batch_rows: int
) -> dict[str, DimError | None]:
    """Load a model on every node of the pool, all at once.

    Args:
        pool: the nodes.
        package: the model with its signatures.
        store: where its blocks are; nodes of another block network are given them.
        batch_rows: rows of the micro-batch that is run once.

    Returns:
        Node name (its address where it does not answer) → None, or why it could not.

    Raises:
        ContentError: the package is not in the store.
    """
    looked = await pool.look()
    cids = [cid async for cid in tree_blocks(store, package.cid)] + list(package.signatures)
    blocks = [Block(cid, await store.get(cid)) for cid in cids]

    async def warm(node: str, shared: bool) -> DimError | None:
        try:
            client = await pool.connect(node)
            if not shared:
                held = await client.have(cids)
                await client.put([block for block in blocks if block.cid not in held])
            async for _ in client.warm(package.cid, package.signatures, batch_rows):
                pass
        except DimError as error:
            return error
        return None

    answers: dict[str, DimError | None] = {}
    warming: dict[str, asyncio.Task[DimError | None]] = {}
    for each in looked:
        if each.node is None or each.presence is not Presence.READY:
            answers[each.name] = each.error or NodeUnreachable(each.reason)
        else:
            shared = bool(store.swarm) and each.node.swarm == store.swarm
            warming[each.name] = asyncio.create_task(warm(each.id, shared))
    try:
        for name, task in warming.items():
            answers[name] = await task
    finally:
        for task in warming.values():
            task.cancel()
    return answers
