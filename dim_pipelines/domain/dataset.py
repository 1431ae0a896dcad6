"""Datasets and results as content: a root block and ordered pages of at most 512 KiB.

Kubo refuses blocks over 2 MiB, and a million shards must work, so a root never lists shards itself.
`content/manifest` writes and reads these as streams.
"""

from __future__ import annotations

from typing import ClassVar, Final, Literal

from dim_pipelines.domain.cid import Cid
from dim_pipelines.domain.format import Format, Value

MAX_PAGE_BYTES: Final = 512 * 1024
"""The largest encoded page, in bytes."""
MAX_SHARD_BYTES: Final = 64 << 20
"""The largest shard, in bytes: a node takes it whole (`NodeDescription.max_input_bytes`)."""
LEAF_BYTES: Final = 256 << 10
"""A shard up to this size is one raw block; a larger one is a UnixFS file with chunks of this size."""


class Column(Value):
    """A column's name and its Arrow type in Arrow's own words (`int64`, `binary`, `list<item: float>`)."""

    name: str
    type: str


class PageEntry(Value):
    """A page of a root: its CID, how many items it lists and how many rows they hold."""

    page: Cid
    items: int
    rows: int


class ShardPage(Format):
    """Shards in order: `(CID, rows)` each. The item at position i of the whole list is shard i."""

    kind_name: ClassVar[str] = "dim/shards"
    shards: list[tuple[Cid, int]]


class DeadPage(Format):
    """Ids of rows that are not in the shards, in input order."""

    kind_name: ClassVar[str] = "dim/dead"
    ids: list[int | str]


class Dataset(Format):
    """Rows in shards.

    Attributes:
        columns: the shards' columns; the first one is the id.
        rows: rows in all shards together (dead ones are not counted).
        shards: how many shards.
        shard_rows: rows of every shard but the last one.
        pages: pages of shards (`ShardPage`).
        dead: pages of the ids of rows found bad at ingest (`DeadPage`).
        dead_rows: how many such rows.
        encryption: `none`; anything else is refused.
    """

    kind_name: ClassVar[str] = "dim/dataset"
    columns: tuple[Column, ...]
    rows: int
    shards: int
    shard_rows: int
    pages: tuple[PageEntry, ...]
    dead: tuple[PageEntry, ...] = ()
    dead_rows: int = 0
    encryption: Literal["none"] = "none"


class Result(Format):
    """The outputs of a Work: same work, same bytes, anywhere.

    Attributes:
        work: CID of the `Work`.
        columns: the output shards' columns; the first one is the id.
        rows, shards, pages: as in `Dataset`; output i belongs to input shard i.
        dead: pages of the ids of all dead rows, those of the dataset first.
        dead_rows: how many.
    """

    kind_name: ClassVar[str] = "dim/result"
    work: Cid
    columns: tuple[Column, ...]
    rows: int
    shards: int
    pages: tuple[PageEntry, ...]
    dead: tuple[PageEntry, ...] = ()
    dead_rows: int = 0
    encryption: Literal["none"] = "none"
