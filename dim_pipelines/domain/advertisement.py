"""What a node says of itself in its signed record: the value under its IPNS name."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from dim_pipelines.domain.cid import Cid
from dim_pipelines.domain.format import Format, Value

Reach = Literal["direct", "attached"]
"""`direct`: it takes connections at its endpoints; `attached`: it dials out, and orchestrators splice."""


class AdvertisedDevice(Value):
    """A device: `cpu` or `cuda:0`, its kind (`cpu` | `cuda`), name, and memory in bytes."""

    id: str
    kind: str
    name: str
    memory_bytes: int


class Speed(Value):
    """Measured speed of a model on this node.

    Attributes:
        model: the model's CID.
        numerics: the numerics class it was measured in.
        rows_per_1000_s: rows in 1,000 seconds (an integer, because dag-cbor floats invite two encodings of one speed).
        spread_per_mille: half of the 95 % confidence interval, in thousandths of the speed.
        samples: how many micro-batches were timed.
    """

    model: Cid
    numerics: str
    rows_per_1000_s: int
    spread_per_mille: int
    samples: int


class Advertisement(Format):
    """A node's advertisement.

    Attributes:
        label: the node's name for people.
        version: DIM's version on it.
        devices: the devices it offers.
        numerics: engine → numerics base class (see `domain.node.numerics_class`).
        models: CIDs of models on its disk, most recently used first; at most 64.
        speeds: what was measured; at most 32.
        max_input_bytes: the largest input shard it takes.
        max_sessions: the most sessions it holds at a time.
        price: asked per 1,000 rows, in millionths of a credit; 0: free.
        labels: for `requirements.labels`.
        hours: when it works, as its owner wrote it (`22:00-07:00`, local time by `utc_offset_min`); empty: always.
        utc_offset_min: minutes east of UTC for `hours`.
        owners: whose batches it takes; empty: everybody's.
        licences: SPDX ids of the models it runs; empty: all.
        swarm: names the block network its store is part of; empty when it has only its own blocks.
        paused: it takes no new sessions.
        draining: it is shutting down.
    """

    kind_name: ClassVar[str] = "dim/advertisement"
    label: str
    version: str
    devices: tuple[AdvertisedDevice, ...]
    numerics: dict[str, str]
    models: tuple[Cid, ...] = ()
    speeds: tuple[Speed, ...] = ()
    max_input_bytes: int
    max_sessions: int
    price: int = 0
    labels: dict[str, str] = Field(default_factory=dict)
    hours: str = ""
    utc_offset_min: int = 0
    owners: tuple[str, ...] = ()
    licences: tuple[str, ...] = ()
    swarm: str = ""
    paused: bool = False
    draining: bool = False


class RecordFields(Value):
    """DIM's own signed fields of a node's IPNS record: the map under the key `_dim` of the record's dag-cbor data.

    Attributes:
        v: 1.
        network: IPNS name of the network's root key.
        boot: 16 random bytes of the daemon's start: a changed one means that it was restarted.
        issued_ms: Unix time in milliseconds at which the record was made.
        reach: how the node is reached.
        endpoints: `HOST:PORT` at which it takes connections; empty where it is attached.
        attached_to: IPNS names of the orchestrators that it is attached to.
        certificate: DER of the P-256 certificate that its server shows.
        advertisement: the encoded `Advertisement`, whose CID the record's value names.
    """

    v: int = 1
    network: str
    boot: bytes
    issued_ms: int
    reach: Reach
    endpoints: tuple[str, ...] = ()
    attached_to: tuple[str, ...] = ()
    certificate: bytes
    advertisement: bytes
