"""Why a node cannot take a batch's work: every reason at once, in words for people.

A node's memory, engine and class are what it said of itself; it may still refuse when asked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

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
    """

    models: tuple[tuple[str, str], ...]
    numerics: str | None = None
    device: Literal["any", "cpu", "cuda"] = "any"
    min_vram: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)
    max_shard_bytes: int = 0


def class_on(node: NodeDescription, need: Need) -> str | None:
    """Name the numerics class in which the node would compute all models; None where it lacks an engine."""
    classes: dict[str, None] = {}
    for engine, dtype in need.models:
        base = node.numerics.get(engine)
        if base is None:
            return None
        classes[numerics_class(base, dtype)] = None
    return "+".join(classes)


def infeasible(node: NodeDescription, need: Need) -> tuple[str, ...]:
    """Give every reason why the node cannot take the work; empty when it can."""
    reasons: list[str] = []
    if node.draining:
        reasons.append("it is draining")
    missing = sorted({engine for engine, _ in need.models if engine not in node.numerics})
    if missing:
        reasons.append(f"it has no engine {', '.join(missing)} (it has {', '.join(sorted(node.numerics)) or 'none'})")
    elif need.numerics not in (None, ANY):
        found = class_on(node, need)
        if found != need.numerics:
            reasons.append(f"it computes in numerics class {found}, the batch is bound to {need.numerics}")
    fitting = [device for device in node.devices if need.device in (ANY, device.kind)]
    if not fitting:
        kinds = sorted({device.kind for device in node.devices})
        reasons.append(f"it has no {need.device} device (it has {', '.join(kinds) or 'none'})")
    elif max(device.memory_bytes for device in fitting) < need.min_vram:
        largest = max(device.memory_bytes for device in fitting)
        reasons.append(f"its largest device has {largest} bytes of memory, the batch needs {need.min_vram}")
    if need.labels:
        wanted = ", ".join(f"{name}={value}" for name, value in sorted(need.labels.items()))
        reasons.append(f"it carries no labels, the batch needs {wanted}")
    if need.max_shard_bytes > node.max_input_bytes:
        reasons.append(f"it takes shards of {node.max_input_bytes} bytes, the batch has one of {need.max_shard_bytes}")
    return tuple(reasons)


def choose_numerics(nodes: Mapping[str, NodeDescription], need: Need) -> str | None:
    """Choose the class a batch is bound to: that of most feasible nodes, by name among equals; None without any."""
    classes = Counter(
        found for node in nodes.values() if not infeasible(node, need) and (found := class_on(node, need)) is not None
    )
    if not classes:
        return None
    return min(classes, key=lambda name: (-classes[name], name))
