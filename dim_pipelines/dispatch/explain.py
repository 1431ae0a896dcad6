"""Which nodes a batch would use, in which order, and why not the others: the same rules as the batch's own.

One function for the command line (`dim nodes explain`), Dagster and `dim doctor`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any, Final

from dim_pipelines.content.models import ModelPackage
from dim_pipelines.dispatch.candidates import bound_to, classes_of, explain_nodes, need_of, reasons_against
from dim_pipelines.dispatch.node_pool import NodePool
from dim_pipelines.domain.batch import BatchSpec
from dim_pipelines.scheduling.feasibility import ANY, choose_numerics
from dim_pipelines.scheduling.ranking import Explained, Weights
from dim_pipelines.scheduling.reputation import Reputation
from dim_pipelines.scheduling.reputation import explain as explain_reputation

__all__ = ["Explained", "explain", "plain", "reputations_of"]

SEED: Final = 0
"""Ties are broken the same way each time one asks; a batch breaks them at random."""


async def explain(
    pool: NodePool,
    spec: BatchSpec,
    models: Sequence[ModelPackage],
    *,
    owner: str = "local",
    numerics: str | None = None,
    swarm: str = "",
    weights: Weights | None = None,
) -> list[Explained]:
    """Say of each node of a pool how it stands towards a batch.

    Args:
        pool: the nodes.
        spec: the batch.
        models: its models, in the spec's order.
        owner: whose it is.
        numerics: the class it is bound to already; the one that it would choose now when left out.
        swarm: the block network of the run worker; empty for none.
        weights: of the ranking.

    Returns:
        The nodes that could take it, the best first; then the others by name.

    Raises:
        DimError: the pool cannot be looked at.
    """
    looked = await pool.look()
    need = need_of(spec, models, pool.owner_of(owner))
    if spec.numerics == ANY:
        need = bound_to(need, ANY)
    else:
        able = {each.name: each.node for each in looked if each.node is not None and not reasons_against(each, need)}
        chosen = numerics or choose_numerics(able, need)
        need = need if chosen is None else bound_to(need, chosen)
    return explain_nodes(
        looked,
        need,
        swarm=swarm,
        weights=weights or Weights(),
        reputations=await pool.reputations(classes_of(looked, need)),
        now_ms=time.time_ns() // 1_000_000,
        random=Random(SEED),
    )


def reputations_of(reputations: Mapping[str, Reputation]) -> dict[str, str]:
    """Explain reputations: numerics class → one line."""
    now_ms = time.time_ns() // 1_000_000
    return {numerics: explain_reputation(each, now_ms) for numerics, each in reputations.items()}


def plain(explained: Explained) -> dict[str, Any]:
    """Give plain data for JSON and for a run's metadata."""
    return {
        "node": explained.node,
        "name": explained.name,
        "state": explained.state,
        "feasible": explained.feasible,
        "reasons": list(explained.reasons),
        "score": None if explained.score is None else round(explained.score, 4),
        "parts": {name: round(value, 4) for name, value in explained.parts.items()},
        "chosen": explained.chosen,
    }
