"""What a node says of itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from dim_pipelines.domain.advertisement import Advertisement, Speed
from dim_pipelines.domain.cid import Cid


@dataclass(frozen=True, slots=True)
class Device:
    """A device that runs models: `cpu` or `cuda:0`, its kind (`cpu` | `cuda`), name and memory in bytes."""

    id: str
    kind: str
    name: str
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class NodeDescription:
    """A node as the scheduler sees it: what `DescribeNode` answers, or what its signed record says.

    Attributes:
        name: the node's name for people; unique within a pool.
        key: the node's Ed25519 public key, 32 bytes.
        version: DIM's version on the node.
        devices: the devices it offers.
        numerics: engine name → numerics base class of this machine (see `numerics_class`).
        swarm: names the block network that the node's store is part of; empty when it has only its own blocks.
        max_input_bytes: the largest input shard it takes.
        draining: it takes no new sessions, because it is shutting down.
        id: the node's IPNS name in a network; empty before one exists.
        owner: the member it belongs to.
        labels: for `requirements.labels`.
        models: CIDs of models on its disk.
        speeds: measured speeds.
        price: asked per 1,000 rows, in millionths of a credit.
        max_sessions: the most sessions it holds at a time; 0 when unknown.
        paused: it takes no new sessions, because its owner wants it so, or because of its hours.
        owners: whose batches it takes; empty: everybody's.
        licences: SPDX ids of the models it runs; empty: all.
    """

    name: str
    key: bytes
    version: str
    devices: tuple[Device, ...]
    numerics: dict[str, str]
    swarm: str
    max_input_bytes: int
    draining: bool = False
    id: str = ""
    owner: str = "local"
    labels: Mapping[str, str] = field(default_factory=dict)
    models: frozenset[Cid] = frozenset()
    speeds: tuple[Speed, ...] = ()
    price: int = 0
    max_sessions: int = 0
    paused: bool = False
    owners: tuple[str, ...] = ()
    licences: tuple[str, ...] = ()


def numerics_class(base: str, dtype: str) -> str:
    """Name the numerics class of a model of `dtype` on a machine whose engine reports `base`.

    Outputs are equal to the bit only within one class (DESIGN, "Numerics are fixed by content").
    """
    return f"{base}/{dtype}"


def describe_advertised(id: str, key: bytes, owner: str, said: Advertisement) -> NodeDescription:
    """Give what a signed advertisement says of a node.

    Args:
        id: the node's IPNS name.
        key: the node's public key, 32 bytes.
        owner: the member it belongs to, as the roster says.
        said: the advertisement.
    """
    return NodeDescription(
        name=said.label,
        key=key,
        version=said.version,
        devices=tuple(Device(each.id, each.kind, each.name, each.memory_bytes) for each in said.devices),
        numerics=dict(said.numerics),
        swarm=said.swarm,
        max_input_bytes=said.max_input_bytes,
        draining=said.draining,
        id=id,
        owner=owner,
        labels=dict(said.labels),
        models=frozenset(said.models),
        speeds=said.speeds,
        price=said.price,
        max_sessions=said.max_sessions,
        paused=said.paused,
        owners=said.owners,
        licences=said.licences,
    )
