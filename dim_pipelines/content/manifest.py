"""Manifests: a dataset's or result's root block and its pages, written and read as streams.

How items fall into pages is part of the format (the same list must give the same root): items go in order
into a page for as long as the encoded page stays within the limit.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Final, TypeVar

from dim_pipelines.content.store import MAX_BLOCK_BYTES, Block, ContentStore, Pin
from dim_pipelines.domain.cid import DAG_CBOR, Cid
from dim_pipelines.domain.dataset import MAX_PAGE_BYTES, Dataset, DeadPage, PageEntry, Result, ShardPage
from dim_pipelines.domain.format import Format, encode_cbor
from dim_pipelines.errors import ContentMismatch, InputError

MAX_ID_BYTES: Final = 4096
"""The longest text that may name a row, in UTF-8 bytes."""

_LINK_BYTES: Final = 41  # tag 42 (2), head of a 37-byte string (2), the multibase identity prefix (1), 36 bytes
_PAGES_AHEAD: Final = 16
_PUT_PAGES: Final = 8

Root = TypeVar("Root", Dataset, Result)


class _PageWriter:
    """Collects items into pages; keeps one open page and at most `_PUT_PAGES` sealed ones in memory."""

    def __init__(
        self, store: ContentStore, make: Callable[[list[Any]], Format], page_bytes: int, pin: Pin | None
    ) -> None:
        self._store = store
        self._make = make
        self._limit = page_bytes
        self._pin = pin
        # the list's own head grows from one byte to at most five
        self._overhead = len(make([]).encode()) + 4
        self._items: list[Any] = []
        self._size = self._overhead
        self._rows = 0
        self._sealed: list[Block] = []
        self._entries: list[PageEntry] = []

    async def append(self, item: object, size: int, rows: int) -> None:
        if self._items and self._size + size > self._limit:
            await self._seal()
        self._items.append(item)
        self._size += size
        self._rows += rows

    async def finish(self) -> tuple[PageEntry, ...]:
        if self._items:
            await self._seal()
        await self._flush()
        return tuple(self._entries)

    async def _seal(self) -> None:
        data = self._make(self._items).encode()
        cid = Cid.of(DAG_CBOR, data)
        self._sealed.append(Block(cid, data))
        self._entries.append(PageEntry(page=cid, items=len(self._items), rows=self._rows))
        self._items, self._size, self._rows = [], self._overhead, 0
        if len(self._sealed) >= _PUT_PAGES:
            await self._flush()

    async def _flush(self) -> None:
        if self._sealed:
            await self._store.put(self._sealed, pin=self._pin)
            self._sealed = []


class ShardWriter:
    """Writes the pages of a list of shards.

    Attributes:
        shards: shards added so far.
        rows: their rows.
    """

    def __init__(self, store: ContentStore, page_bytes: int = MAX_PAGE_BYTES, pin: Pin | None = None) -> None:
        """Write into `store`.

        Args:
            store: where the pages go.
            page_bytes: the largest encoded page; part of the format, so other than `MAX_PAGE_BYTES` only in tests.
            pin: what holds each page until the root is pinned.
        """
        self._pages = _PageWriter(store, lambda items: ShardPage(shards=items), page_bytes, pin)
        self.shards = 0
        self.rows = 0

    async def add(self, cid: Cid, rows: int) -> None:
        """Add the next shard."""
        self.shards += 1
        self.rows += rows
        await self._pages.append((cid, rows), 1 + _LINK_BYTES + _uint_bytes(rows), rows)

    async def close(self) -> tuple[PageEntry, ...]:
        """Write what is left and give the pages for the root."""
        return await self._pages.finish()


class DeadWriter:
    """Writes the pages of a list of row ids.

    Attributes:
        rows: ids added so far.
    """

    def __init__(self, store: ContentStore, page_bytes: int = MAX_PAGE_BYTES, pin: Pin | None = None) -> None:
        """Write into `store`; the arguments are those of `ShardWriter`."""
        self._pages = _PageWriter(store, lambda items: DeadPage(ids=items), page_bytes, pin)
        self.rows = 0

    async def add(self, row: int | str) -> None:
        """Add the next id.

        Raises:
            InputError: the id is a text of more than `MAX_ID_BYTES`.
        """
        size = len(encode_cbor(row))
        if size > MAX_ID_BYTES + 9:
            raise InputError(f"a row's id has {size} bytes, the limit is {MAX_ID_BYTES}")
        self.rows += 1
        await self._pages.append(row, size, 1)

    async def close(self) -> tuple[PageEntry, ...]:
        """Write what is left and give the pages for the root."""
        return await self._pages.finish()


async def shards(store: ContentStore, root: Dataset | Result) -> AsyncIterator[tuple[int, Cid, int]]:
    """Read the list of shards: `(index, CID, rows)` in order, pages fetched ahead.

    Raises:
        ContentMismatch: pages and root disagree about how many there are.
        InputError: a page is malformed.
    """
    index = rows_in_all = 0
    async for entry, data in _pages(store, root.pages):
        page = ShardPage.decode(data)
        if len(page.shards) != entry.items or sum(rows for _, rows in page.shards) != entry.rows:
            raise ContentMismatch(f"page {entry.page} does not hold what its root says")
        for cid, rows in page.shards:
            yield index, cid, rows
            index += 1
        rows_in_all += entry.rows
    if (index, rows_in_all) != (root.shards, root.rows):
        raise ContentMismatch(
            f"a manifest lists {index} shards with {rows_in_all} rows, its root says {root.shards} with {root.rows}"
        )


async def dead_ids(store: ContentStore, root: Dataset | Result) -> AsyncIterator[int | str]:
    """Read the ids of dead rows in order.

    Raises:
        ContentMismatch: pages and root disagree about how many there are.
        InputError: a page is malformed.
    """
    count = 0
    async for entry, data in _pages(store, root.dead):
        page = DeadPage.decode(data)
        if len(page.ids) != entry.items:
            raise ContentMismatch(f"page {entry.page} does not hold what its root says")
        for row in page.ids:
            yield row
        count += entry.items
    if count != root.dead_rows:
        raise ContentMismatch(f"a manifest lists {count} dead rows, its root says {root.dead_rows}")


async def read_dataset(store: ContentStore, cid: Cid) -> Dataset:
    """Read a dataset's root.

    Raises:
        InputError: the CID names something else.
        ContentError: as `ContentStore.get`.
    """
    return await _read_root(store, cid, Dataset)


async def read_result(store: ContentStore, cid: Cid) -> Result:
    """Read a result's root.

    Raises:
        InputError: the CID names something else.
        ContentError: as `ContentStore.get`.
    """
    return await _read_root(store, cid, Result)


async def write_root(store: ContentStore, value: Format, pin: Pin | None = None) -> Cid:
    """Store a value as one block; with `pin`, hold everything that it reaches.

    Raises:
        InputError: the value is too large for a block.
        ContentError: as `ContentStore.put` and `pin`.
    """
    data = value.encode()
    if len(data) > MAX_BLOCK_BYTES:
        raise InputError(f"a {value.kind} has {len(data)} bytes, a block holds {MAX_BLOCK_BYTES}")
    cid = Cid.of(DAG_CBOR, data)
    await store.put([Block(cid, data)])
    if pin is not None:
        await store.pin(cid, pin)
    return cid


async def _read_root(store: ContentStore, cid: Cid, kind: type[Root]) -> Root:
    if cid.codec != DAG_CBOR:
        raise InputError(f"{cid} is not a {kind.kind_name}", hint="a dataset's CID starts with 'bafyrei'")
    return kind.decode(await store.get(cid))


async def _pages(store: ContentStore, entries: Sequence[PageEntry]) -> AsyncIterator[tuple[PageEntry, bytes]]:
    # a window at a time, so that a store that fetches all it is asked for does not hold every page
    for start in range(0, len(entries), _PAGES_AHEAD):
        window = entries[start : start + _PAGES_AHEAD]
        blocks = store.get_many([entry.page for entry in window])
        position = 0
        async for block in blocks:
            yield window[position], block.data
            position += 1


def _uint_bytes(value: int) -> int:
    """Bytes of a non-negative integer in CBOR (RFC 8949, 3)."""
    return 1 if value < 24 else 2 if value < 1 << 8 else 3 if value < 1 << 16 else 5 if value < 1 << 32 else 9
