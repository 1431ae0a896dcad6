"""The input shards of a batch: 40 bytes a shard, because a batch may have a million of them."""

from __future__ import annotations

from array import array
from typing import Final

from dim_pipelines.domain.cid import Cid
from dim_pipelines.domain.events import Task

_CID: Final = 36


class ShardInputs:
    """CID and rows of every input shard by position."""

    def __init__(self) -> None:
        self._cids = bytearray()
        self._rows = array("I")

    def __len__(self) -> int:
        """Count the shards."""
        return len(self._rows)

    def append(self, cid: Cid, rows: int) -> None:
        """Add the next shard."""
        self._cids += cid
        self._rows.append(rows)

    def cid(self, shard: int) -> Cid:
        """Give a shard's CID."""
        # checked when it went in: a second check would cost more than all the rest
        return bytes.__new__(Cid, self._cids[shard * _CID : (shard + 1) * _CID])

    def rows(self, shard: int) -> int:
        """Give a shard's rows."""
        return self._rows[shard]

    def task(self, shard: int, attempt: int) -> Task:
        """Make a task of the plan's first step."""
        return Task(shard, 0, (self.cid(shard),), self._rows[shard], attempt)
