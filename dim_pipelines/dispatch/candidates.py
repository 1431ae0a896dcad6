"""Which nodes of a pool can take a batch, in which numerics class, in which order, and why the others cannot."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from random import Random
from typing import Final

from dim_pipelines.content.models import ModelPackage
from dim_pipelines.content.store import ContentStore
from dim_pipelines.content.unixfs import file_size
from dim_pipelines.dispatch.node_pool import NodePool, PoolNode
from dim_pipelines.dispatch.shard_inputs import ShardInputs
from dim_pipelines.domain.batch import BatchSpec
from dim_pipelines.errors import NoFeasibleNode
from dim_pipelines.scheduling.attendance import Presence, Standing
from dim_pipelines.scheduling.feasibility import Need, choose_numerics, class_on, infeasible
from dim_pipelines.scheduling.ranking import UNKNOWN, Candidate, Explained, Weights, rank
from dim_pipelines.scheduling.reputation import Reputation, score

NODES_HINT: Final = "see that the nodes run and that they offer what the model needs: dim node start"

PATIENCE_S: Final = 5.0
"""Seconds for which a batch without a node that can take it asks again one that does not answer."""
_ASK_AGAIN_S: Final = 0.5
_MOST_NODES: Final = 5


def need_of(spec: BatchSpec, models: Sequence[ModelPackage], owner: str, max_shard_bytes: int = 0) -> Need:
    """Say what a batch needs of a node; its numerics class is left open.

    Args:
        spec: the batch.
        models: its models.
        owner: whose it is, as nodes know them.
        max_shard_bytes: bytes of its largest input shard, 0 when unknown.
    """
    requirements = spec.requirements
    return Need(
        models=tuple((model.description.engine, model.description.dtype) for model in models),
        device=requirements.device,
        min_vram=requirements.min_vram,
        labels=requirements.labels,
        max_shard_bytes=max_shard_bytes,
        packages=tuple(model.cid for model in models),
        licences=tuple(model.description.licence for model in models),
        owner=owner,
    )


async def read_need(
    spec: BatchSpec, models: Sequence[ModelPackage], owner: str, inputs: ShardInputs, store: ContentStore
) -> Need:
    """Say what a batch needs of a node, its shards' size included; its numerics class is left open.

    Raises:
        ContentError: the first shard cannot be read.
    """
    # all shards but the last have the same number of rows: the first stands for them
    return need_of(spec, models, owner, await file_size(store, inputs.cid(0)) if len(inputs) else 0)


async def ask_nodes(pool: NodePool, need: Need, waits: Callable[[str], None] | None = None) -> list[PoolNode]:
    """Look at the pool; while no node can take the work and one may soon, look again, within the pool's patience.

    A node that is being restarted answers again within seconds, and a batch whose only node it is should not fail.

    Args:
        pool: the nodes.
        need: the work.
        waits: is told why the batch waits, each time; see `describe_wait`.
    """
    deadline = time.monotonic() + (PATIENCE_S if pool.patience_s is None else pool.patience_s)
    while True:
        looked = await pool.look()
        hope = pool.grows or any(node.presence is Presence.DOUBTFUL for node in looked)
        if not hope or not all(reasons_against(node, need) for node in looked) or time.monotonic() > deadline:
            return looked
        if waits is not None:
            waits(describe_wait({node.name: ", ".join(reasons_against(node, need)) for node in looked}))
        await asyncio.sleep(_ASK_AGAIN_S)


def describe_wait(reasons: Mapping[str, str]) -> str:
    """Say in one line what a batch without a node waits for.

    Args:
        reasons: node name → why it is not used.
    """
    if not reasons:
        return "waits for a node: none is known"
    listed = sorted(reasons.items())
    shown = [f"{name}: {why}" for name, why in listed[:_MOST_NODES]]
    more = len(listed) - len(shown)
    return "waits for a node: " + "; ".join([*shown, *([f"and {more} more"] if more else [])])


def bound_to(need: Need, numerics: str) -> Need:
    """Give the need of a batch that is bound to a numerics class."""
    return replace(need, numerics=numerics)


def choose_class(looked: Sequence[PoolNode], need: Need) -> str:
    """Choose the numerics class that a batch is bound to.

    Raises:
        NoFeasibleNode: no node can take the work; carries each node's reason.
    """
    able = {each.name: each.node for each in looked if each.node is not None and not reasons_against(each, need)}
    numerics = choose_numerics(able, need)
    if numerics is None:
        reasons = {each.name: ", ".join(reasons_against(each, need)) for each in looked}
        raise NoFeasibleNode(None if looked else "there are no nodes", reasons=reasons, hint=NODES_HINT)
    return numerics


def reasons_against(node: PoolNode, need: Need) -> tuple[str, ...]:
    """Give every reason why a node of the pool cannot take the work now; empty when it can."""
    own = () if node.presence is Presence.READY else (node.reason or node.state,)
    return own if node.node is None else (*own, *infeasible(node.node, need, node.sessions))


def standing_of(node: PoolNode, need: Need) -> Standing:
    """Say how a node of the pool stands towards a batch."""
    if node.presence is not Presence.READY:
        return Standing(node.presence, node.reason or node.state)
    # how many sessions it holds, ours among them, is no reason to leave it
    reasons = reasons_against(replace(node, sessions=None), need)
    return Standing(Presence.LEAVING, ", ".join(reasons)) if reasons else Standing(Presence.READY)


def classes_of(looked: Sequence[PoolNode], need: Need) -> dict[str, str]:
    """Give the class in which each node would compute, by id; without those that lack an engine."""
    return {
        each.id: found for each in looked if each.node is not None and (found := class_on(each.node, need)) is not None
    }


def explain_nodes(
    looked: Sequence[PoolNode],
    need: Need,
    *,
    swarm: str,
    weights: Weights,
    reputations: Mapping[str, Reputation],
    now_ms: int,
    random: Random,
) -> list[Explained]:
    """Say of each node of the pool whether a batch could use it, why not, and how much it would like to.

    Args:
        looked: the pool.
        need: the work.
        swarm: the block network of the run worker; empty for none.
        weights: of the ranking.
        reputations: by id; a node that is missing is a stranger.
        now_ms: the time, Unix milliseconds.
        random: breaks ties.

    Returns:
        The feasible ones first, the best first; then the others by name.
    """
    reasons = {each.id: reasons_against(each, need) for each in looked}
    candidates = [
        Candidate(
            each.id,
            each.node,
            shared=bool(swarm) and each.node.swarm == swarm,
            reputation=score(reputations[each.id], now_ms) if each.id in reputations else UNKNOWN,
            sessions=each.sessions,
        )
        for each in looked
        if each.node is not None and not reasons[each.id]
    ]
    by_id = {each.id: each for each in looked}
    explained = [
        Explained(each.id, by_id[each.id].name, by_id[each.id].state, True, (), each.score, each.parts)
        for each in rank(candidates, need, weights, random)
    ]
    others = sorted((each for each in looked if reasons[each.id]), key=lambda each: (each.name, each.id))
    return explained + [Explained(each.id, each.name, each.state, False, reasons[each.id]) for each in others]
