"""The protocol of a content store: verified blocks, and pins that say what must stay.

Everything else (files, folders, manifests, tables, model packages) is built from these calls in the
modules beside this one. What is not promised: `have` and `pins` may be stale by the time they return,
and `collect` may leave a block that nothing holds any more until the next time.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, runtime_checkable

from dim_pipelines.domain.cid import Cid

MAX_BLOCK_BYTES: Final = 1 << 20
"""The largest block that DIM makes or takes, in bytes; Kubo refuses more than 2 MiB on the wire."""
BATCH_LIFETIME_S: Final = 30 * 24 * 3600
"""How long what an unfinished batch has made is held after its last run began, in seconds: 30 days."""
COLLECT_GRACE_S: Final = 3600.0
"""How old an unpinned block must be before `collect` drops it, in seconds: work in flight is younger."""


@dataclass(frozen=True, slots=True)
class Block:
    """A block and its name."""

    cid: Cid
    data: bytes


@dataclass(frozen=True, slots=True)
class Pin:
    """Who wants content kept, why, and until when.

    Attributes:
        owner: the member; `local` by default.
        label: what for: `batch/ID`, `result/ID`, `model/NAME`; (owner, label, root) is one pin.
        expires_ms: Unix time in milliseconds at which the pin ends; None: never.
    """

    owner: str
    label: str
    expires_ms: int | None = None


def batch_pin(owner: str, batch: str) -> Pin:
    """Give the pin for what a batch makes on its way: it ends `BATCH_LIFETIME_S` from now."""
    return Pin(owner, f"batch/{batch}", int((time.time() + BATCH_LIFETIME_S) * 1000))


def result_pin(owner: str, batch: str) -> Pin:
    """Give the pin for a batch's result and provenance, which reach everything they name: it has no end."""
    return Pin(owner, f"result/{batch}")


@dataclass(frozen=True, slots=True)
class Collected:
    """What a collection dropped: blocks and bytes."""

    blocks: int
    bytes: int


@runtime_checkable
class ContentStore(Protocol):
    """Blocks by CID. All calls may be made from one event loop, concurrently.

    Every implementation passes `tests/contracts/test_content_store.py`.
    """

    @property
    def swarm(self) -> str:
        """Name the block network this store is part of; empty when its blocks are its own.

        Two stores of one non-empty swarm read each other's blocks, so nothing needs to be copied between them.
        """
        ...

    async def put(self, blocks: Sequence[Block], *, pin: Pin | None = None) -> None:
        """Store blocks; with `pin`, each given block is held under it (its links are not followed).

        The blocks survive the death of this process once the call returns, and the loss of power once
        `sync` has returned. Either all blocks are stored or the call raises and each is whole or absent.

        Raises:
            ContentMismatch: a block's bytes are not what its CID names, or not of the codec that it says; nothing
                was stored.
            ContentUnavailable: the store does not answer or has no space.
        """
        ...

    async def get(self, cid: Cid) -> bytes:
        """Read one block, verified.

        Raises:
            ContentNotFound: the store cannot find it within its time.
            ContentMismatch: what was found is not what the CID names.
            ContentUnavailable: the store does not answer.
        """
        ...

    def get_many(self, cids: Sequence[Cid]) -> AsyncIterator[Block]:
        """Read blocks in the given order, verified, fetching ahead where a block has a long way to go.

        Raises: as `get`.
        """
        ...

    async def have(self, cids: Sequence[Cid]) -> frozenset[Cid]:
        """Tell which of these blocks are here, without asking anybody else."""
        ...

    async def pin(self, root: Cid, pin: Pin) -> None:
        """Hold everything that `root` reaches (dag-pb and dag-cbor links) under the pin; twice is once.

        Raises:
            ContentNotFound: something below the root is missing.
        """
        ...

    async def unpin(self, root: Cid, pin: Pin) -> None:
        """Drop the pin of this owner and label from `root`; no error where there is none."""
        ...

    async def pins(self, label_prefix: str = "") -> list[tuple[Cid, Pin]]:
        """List the pins whose label begins with `label_prefix`, ended ones included until the next `collect`.

        A store may hold a million pins of batches: who looks for models asks for `model/`.
        """
        ...

    async def collect(self, now_ms: int, grace_s: float = COLLECT_GRACE_S) -> Collected:
        """Drop pins that have ended and then the blocks that no pin reaches and that are older than `grace_s`."""
        ...

    async def sync(self) -> None:
        """Return once everything put before survives a loss of power."""
        ...

    async def close(self) -> None:
        """Give back what the store holds open; further calls are errors."""
        ...
