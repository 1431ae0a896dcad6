"""Which nodes of a pool can take a batch, in which numerics class, and why the others cannot."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from dim_pipelines.content.models import ModelPackage
from dim_pipelines.content.store import ContentStore
from dim_pipelines.content.unixfs import file_size
from dim_pipelines.dispatch.head import Batch
from dim_pipelines.dispatch.node_client import NodeClient
from dim_pipelines.dispatch.node_pool import NodePool
from dim_pipelines.dispatch.shard_inputs import ShardInputs
from dim_pipelines.domain.node import NodeDescription
from dim_pipelines.errors import DimError, NodeUnreachable, NoFeasibleNode
from dim_pipelines.scheduling.feasibility import Need, choose_numerics, infeasible

NODES_HINT: Final = "see that the nodes run and that they offer what the model needs: dim node start"

PATIENCE_S: Final = 5.0
"""Seconds for which a batch without a node that can take it asks again one that does not answer."""
_ASK_AGAIN_S: Final = 0.5

Described = dict[str, NodeDescription | DimError]
"""What `NodePool.describe` gives."""


async def read_need(batch: Batch, models: Sequence[ModelPackage], inputs: ShardInputs, store: ContentStore) -> Need:
    """Say what a batch needs of a node; its numerics class is left open.

    Raises:
        ContentError: the first shard cannot be read.
    """
    requirements = batch.spec.requirements
    return Need(
        models=tuple((model.description.engine, model.description.dtype) for model in models),
        device=requirements.device,
        min_vram=requirements.min_vram,
        labels=requirements.labels,
        # all shards but the last have the same number of rows: the first stands for them
        max_shard_bytes=await file_size(store, inputs.cid(0)) if len(inputs) else 0,
    )


async def ask_nodes(pool: NodePool, need: Need) -> Described:
    """Ask every node what it is; while none can take the work and one does not answer, ask again for `PATIENCE_S`.

    A node that is being restarted answers again within seconds, and a batch whose only node it is should not fail.
    """
    deadline = time.monotonic() + PATIENCE_S
    while True:
        described = await pool.describe()
        absent = any(isinstance(node, NodeUnreachable) for node in described.values())
        if not absent or len(_reasons(described, need)) < len(described) or time.monotonic() > deadline:
            return described
        await asyncio.sleep(_ASK_AGAIN_S)


def bound_to(need: Need, numerics: str) -> Need:
    """Give the need of a batch that is bound to a numerics class."""
    return replace(need, numerics=numerics)


def choose_class(described: Described, need: Need) -> str:
    """Choose the numerics class that a batch is bound to.

    Raises:
        NoFeasibleNode: no node can take the work; carries each node's reason.
    """
    nodes = {name: node for name, node in described.items() if isinstance(node, NodeDescription)}
    numerics = choose_numerics(nodes, need)
    if numerics is None:
        raise NoFeasibleNode(
            None if described else "there are no nodes", reasons=_reasons(described, need), hint=NODES_HINT
        )
    return numerics


def _reasons(described: Described, need: Need) -> dict[str, str]:
    reasons: dict[str, str] = {}
    for name, node in described.items():
        why = (node.message,) if isinstance(node, DimError) else infeasible(node, need)
        if why:
            reasons[name] = ", ".join(why)
    return reasons


def find_feasible(
    pool: NodePool, described: Described, need: Need, swarm: str
) -> tuple[dict[str, tuple[NodeClient, bool]], dict[str, str]]:
    """Give the feasible nodes (the client, and whether the node is of our swarm), and why the others are not."""
    reasons = _reasons(described, need)
    nodes = {
        name: (pool.client(name), bool(swarm) and node.swarm == swarm)
        for name, node in described.items()
        if isinstance(node, NodeDescription) and name not in reasons
    }
    return nodes, reasons
