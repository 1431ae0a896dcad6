"""What a node says of itself: the description that its services answer, and the fields of its signed record; pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from dim_pipelines.domain.advertisement import AdvertisedDevice, Advertisement, Reach, RecordFields, Speed
from dim_pipelines.domain.cid import Cid
from dim_pipelines.domain.node import NodeDescription
from dim_pipelines.node.controls import Controls
from dim_pipelines.node.speeds import MAX_SPEEDS

MAX_MODELS: Final = 64
"""How many models are advertised: those used last."""


@dataclass(frozen=True, slots=True)
class Reachability:
    """How others reach a node.

    Attributes:
        reach: `direct` or `attached`.
        endpoints: `HOST:PORT` at which it takes connections; empty where it is attached.
        attached_to: IPNS names of the orchestrators that it is attached to.
        reason: why, for people.
    """

    reach: Reach = "direct"
    endpoints: tuple[str, ...] = ()
    attached_to: tuple[str, ...] = ()
    reason: str = "not asked yet"


def describe(
    base: NodeDescription, controls: Controls, local: datetime, models: Sequence[Cid], speeds: Sequence[Speed]
) -> NodeDescription:
    """Give a node's description as it is now.

    Args:
        base: what does not change while the daemon runs.
        controls: the owner's controls.
        local: the node's local time, for its hours.
        models: the models on its disk, most recently used first.
        speeds: measured speeds.
    """
    return replace(
        base,
        labels=dict(controls.labels),
        models=frozenset(models),
        speeds=tuple(speeds),
        price=controls.price,
        max_sessions=controls.max_sessions,
        paused=bool(controls.closed(local)),
        owners=controls.owners,
        licences=controls.licences,
    )


def advertise(
    described: NodeDescription, controls: Controls, local: datetime, models: Sequence[Cid], *, draining: bool
) -> Advertisement:
    """Give the advertisement of a node.

    Args:
        described: as `describe` gave it.
        controls: the owner's controls.
        local: the node's local time with its zone.
        models: the models on its disk, most recently used first.
        draining: it is shutting down.
    """
    offset = local.utcoffset()
    return Advertisement(
        label=described.name,
        version=described.version,
        devices=tuple(
            AdvertisedDevice(id=each.id, kind=each.kind, name=each.name, memory_bytes=each.memory_bytes)
            for each in described.devices
        ),
        numerics=described.numerics,
        models=tuple(models[:MAX_MODELS]),
        speeds=described.speeds[-MAX_SPEEDS:],
        max_input_bytes=described.max_input_bytes,
        max_sessions=described.max_sessions,
        price=described.price,
        labels=dict(described.labels),
        hours=controls.hours.text,
        utc_offset_min=int(offset.total_seconds() // 60) if offset else 0,
        owners=described.owners,
        licences=described.licences,
        swarm=described.swarm,
        paused=described.paused,
        draining=draining,
    )


def record_fields(
    said: Advertisement, network: str, boot: bytes, certificate: bytes, reached: Reachability, now_ms: int
) -> RecordFields:
    """Give DIM's own fields of a node's record.

    Args:
        said: the advertisement.
        network: IPNS name of the network's root key.
        boot: 16 random bytes of this start of the daemon.
        certificate: DER of the certificate that its server shows.
        reached: how it is reached.
        now_ms: Unix time in milliseconds.
    """
    return RecordFields(
        network=network,
        boot=boot,
        issued_ms=now_ms,
        reach=reached.reach,
        endpoints=reached.endpoints if reached.reach == "direct" else (),
        attached_to=reached.attached_to if reached.reach == "attached" else (),
        certificate=certificate,
        advertisement=said.encode(),
    )
