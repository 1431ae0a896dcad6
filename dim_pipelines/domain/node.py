"""What a node says of itself."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Device:
    """A device that runs models: `cpu` or `cuda:0`, its kind (`cpu` | `cuda`), name and memory in bytes."""

    id: str
    kind: str
    name: str
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class NodeDescription:
    """What `DescribeNode` answers.

    Attributes:
        name: the node's name for people; unique within a pool.
        key: the node's Ed25519 public key, 32 bytes.
        version: DIM's version on the node.
        devices: the devices it offers.
        numerics: engine name → numerics base class of this machine (see `numerics_class`).
        swarm: names the block network that the node's store is part of; empty when it has only its own blocks.
        max_input_bytes: the largest input shard it takes.
        draining: it takes no new sessions.
    """

    name: str
    key: bytes
    version: str
    devices: tuple[Device, ...]
    numerics: dict[str, str]
    swarm: str
    max_input_bytes: int
    draining: bool = False


def numerics_class(base: str, dtype: str) -> str:
    """Name the numerics class of a model of `dtype` on a machine whose engine reports `base`.

    Outputs are equal to the bit only within one class (DESIGN, "Numerics are fixed by content").
    """
    return f"{base}/{dtype}"
