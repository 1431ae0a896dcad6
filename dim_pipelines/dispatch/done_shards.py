"""Which shards are done and what they gave: 43 bytes a shard, because a batch may have a million of them."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import Final

from dim_pipelines.domain.cid import Cid
from dim_pipelines.domain.events import ShardDone, Usage
from dim_pipelines.errors import InputError

_CID: Final = 36
MAX_SHARDS: Final = 1 << 27
"""More shards than this in one batch are refused: a journal that says so is wrong."""


class DoneShards:
    """The finished shards of a batch by position; grows as larger positions come."""

    def __init__(self) -> None:
        self._outputs = bytearray()
        self._rows = array("I")
        self._nodes = array("H")  # 0: not done, else the position of the node's name + 1
        self._names: list[str] = []
        self._places: dict[str, int] = {}
        self._count = 0

    def __len__(self) -> int:
        """Count the done shards."""
        return self._count

    def __contains__(self, shard: int) -> bool:
        """Tell whether a shard is done."""
        return shard < len(self._nodes) and self._nodes[shard] != 0

    def __iter__(self) -> Iterator[int]:
        """Give the done shards in order."""
        return (shard for shard, node in enumerate(self._nodes) if node)

    def add(self, shard: int, output: Cid, rows: int, node: str) -> bool:
        """Note a done shard; the first word about a shard stays.

        Returns:
            Whether it was new.

        Raises:
            InputError: the position is beyond `MAX_SHARDS`.
        """
        if shard >= len(self._nodes):
            self._grow(shard)
        elif self._nodes[shard]:
            return False
        place = self._places.get(node)
        if place is None:
            place = self._places[node] = len(self._names)
            self._names.append(node)
        self._outputs[shard * _CID : (shard + 1) * _CID] = output
        self._rows[shard] = rows
        self._nodes[shard] = place + 1
        self._count += 1
        return True

    def drop(self, shard: int) -> None:
        """Forget a done shard: its output is gone."""
        if shard in self:
            self._nodes[shard] = 0
            self._count -= 1

    def output(self, shard: int) -> Cid:
        """Give the output of a done shard."""
        # checked when it went in: a second check would cost more than all the rest
        return bytes.__new__(Cid, self._outputs[shard * _CID : (shard + 1) * _CID])

    def rows(self, shard: int) -> int:
        """Give the rows of a done shard's output."""
        return self._rows[shard]

    def node(self, shard: int) -> str:
        """Name the node that computed a done shard."""
        return self._names[self._nodes[shard] - 1]

    def done(self, shard: int) -> ShardDone:
        """Give a done shard as an event; its usage is not kept here."""
        return ShardDone(shard, self.output(shard), self.rows(shard), self.node(shard), Usage())

    def per_node(self) -> dict[str, int]:
        """Count the done shards of each node."""
        counts = [0] * (len(self._names) + 1)
        for place in self._nodes:
            counts[place] += 1
        return {name: counts[place + 1] for place, name in enumerate(self._names) if counts[place + 1]}

    def _grow(self, shard: int) -> None:
        if shard >= MAX_SHARDS:
            raise InputError(f"shard {shard} is beyond what a batch may have")
        more = max(shard + 1, len(self._nodes) * 5 // 4) - len(self._nodes)
        self._outputs.extend(bytes(more * _CID))
        self._rows.frombytes(bytes(more * self._rows.itemsize))
        self._nodes.frombytes(bytes(more * self._nodes.itemsize))
