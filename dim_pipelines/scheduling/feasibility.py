"""Why a node cannot take a batch's work: every reason at once, in words for people.

A node's memory, engine and class are what it said of itself; it may still refuse when asked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from dim_pipelines.domain.cid import Cid
from dim_pipelines.domain.licences import permits
from dim_pipelines.domain.node import NodeDescription, numerics_class

ANY: Final = "any"
"""The numerics class of a batch that is not bound to one."""


@dataclass(frozen=True, slots=True)
class Need:
    """What a batch's work needs of a node.

    Attributes:
        models: (engine, dtype) of each model, in the plan's order.
        numerics: the class the batch is bound to; `any` when to none; None while it is not chosen yet.
        device: the kind of device wanted.
        min_vram: bytes of device memory.
        labels: labels the node must carry.
        max_shard_bytes: bytes of the largest input shard known, 0 when unknown.
        packages: CIDs of the models, in the same order; empty when unknown.
        licences: the models' licences (SPDX expressions).
        owner: whose batch it is.
    """

    models: tuple[tuple[str, str], ...]
    numerics: str | None = None
    device: Literal["any", "cpu", "cuda"] = "any"
    min_vram: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)
    max_shard_bytes: int = 0
    packages: tuple[Cid, ...] = ()
    licences: tuple[str, ...] = ()
    owner: str = "local"


def class_on(node: NodeDescription, need: Need) -> str | None:
    """Name the numerics class in which the node would compute all models; None where it lacks an engine."""
    classes: dict[str, None] = {}
    for engine, dtype in need.models:
        base = node.numerics.get(engine)
        if base is None:
            return None
        classes[numerics_class(base, dtype)] = None
    return "+".join(classes)


def infeasible(node: NodeDescription, need: Need, sessions: int | None = None) -> tuple[str, ...]:
    """Give every reason why the node cannot take the work; empty when it can.

    Args:
        node: what it says of itself.
        need: the work.
        sessions: sessions that it holds; None when unknown.
    """
    reasons = _owners_reasons(node, need, sessions)
    if missing := [engine for engine, _ in need.models if engine not in node.numerics]:
        missing = sorted(set(missing))
        reasons.append(f"it has no engine {', '.join(missing)} (it has {', '.join(sorted(node.numerics)) or 'none'})")
    elif need.numerics not in (None, ANY):
        found = class_on(node, need)
        if found != need.numerics:
            reasons.append(f"it computes in numerics class {found}, the batch is bound to {need.numerics}")
    fitting = [device for device in node.devices if need.device in (ANY, device.kind)]
    if not fitting:
        kinds = sorted({device.kind for device in node.devices})
        reasons.append(f"it has no {need.device} device (it has {', '.join(kinds) or 'none'})")
    elif (largest := max([device.memory_bytes for device in fitting])) < need.min_vram:
        reasons.append(f"its largest device has {largest} bytes of memory, the batch needs {need.min_vram}")
    if need.labels and (
        lacking := {name: value for name, value in need.labels.items() if node.labels.get(name) != value}
    ):
        has = f"the labels {_listed(node.labels)}" if node.labels else "no labels"
        reasons.append(f"it carries {has}, the batch needs {_listed(lacking)}")
    if need.max_shard_bytes > node.max_input_bytes:
        reasons.append(f"it takes shards of {node.max_input_bytes} bytes, the batch has one of {need.max_shard_bytes}")
    return tuple(reasons)


def _owners_reasons(node: NodeDescription, need: Need, sessions: int | None) -> list[str]:
    """Give the reasons that the node's owner has."""
    reasons: list[str] = []
    if node.draining:
        reasons.append("it is draining")
    if node.paused:
        reasons.append("it is paused by its owner, or outside its hours")
    if node.owners and need.owner not in node.owners:
        reasons.append(f"it takes batches of {', '.join(node.owners)} only, this one is of {need.owner}")
    if node.licences and (unwanted := [each for each in need.licences if not permits(each, node.licences)]):
        unwanted = sorted(set(unwanted))
        reasons.append(f"it runs no model under {', '.join(unwanted)} (it takes {', '.join(sorted(node.licences))})")
    if sessions is not None and 0 < node.max_sessions <= sessions:
        reasons.append(f"it holds {sessions} of {node.max_sessions} sessions")
    return reasons


def _listed(labels: Mapping[str, str]) -> str:
    return ", ".join(f"{name}={value}" for name, value in sorted(labels.items()))


def choose_numerics(nodes: Mapping[str, NodeDescription], need: Need) -> str | None:
    """Choose the class a batch is bound to: that of most feasible nodes, by name among equals; None without any."""
    classes = Counter(
        found for node in nodes.values() if not infeasible(node, need) and (found := class_on(node, need)) is not None
    )
    if not classes:
        return None
    return min(classes, key=lambda name: (-classes[name], name))
