"""The content store in memory: for tests, previews and the pure parts of larger things."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterable, Sequence

from dim_pipelines.content.links import links
from dim_pipelines.content.store import COLLECT_GRACE_S, Block, Collected, Pin
from dim_pipelines.content.verify import check_blocks
from dim_pipelines.domain.cid import RAW, Cid
from dim_pipelines.errors import ContentNotFound, ContentUnavailable


class MemoryContentStore:
    """Blocks and pins in two dictionaries; nothing outlives the object."""

    def __init__(self) -> None:
        self._blocks: dict[Cid, tuple[bytes, int]] = {}
        self._pins: dict[tuple[Cid, str, str], tuple[int | None, bool]] = {}
        self._closed = False

    @property
    def swarm(self) -> str:
        """Empty: the blocks are its own."""
        return ""

    async def put(self, blocks: Sequence[Block], *, pin: Pin | None = None) -> None:
        """Store blocks: see `ContentStore.put`."""
        self._check_open()
        check_blocks(blocks)
        now_ms = time.time_ns() // 1_000_000
        for block in blocks:
            self._blocks[block.cid] = (bytes(block.data), now_ms)
        if pin is not None:
            for block in blocks:
                key = (block.cid, pin.owner, pin.label)
                self._pins[key] = (pin.expires_ms, self._pins.get(key, (None, False))[1])

    async def get(self, cid: Cid) -> bytes:
        """Read one block: see `ContentStore.get`."""
        self._check_open()
        found = self._blocks.get(cid)
        if found is None:
            raise ContentNotFound(f"block {cid} is not in this store")
        return found[0]

    async def get_many(self, cids: Sequence[Cid]) -> AsyncIterator[Block]:
        """Read blocks in order: see `ContentStore.get_many`."""
        for cid in cids:
            yield Block(cid, await self.get(cid))

    async def have(self, cids: Sequence[Cid]) -> frozenset[Cid]:
        """Tell which blocks are here."""
        self._check_open()
        return frozenset(cid for cid in cids if cid in self._blocks)

    async def pin(self, root: Cid, pin: Pin) -> None:
        """Hold everything below `root`: see `ContentStore.pin`."""
        self._check_open()
        missing = next((cid for cid in self._reach([root]) if cid not in self._blocks), None)
        if missing is not None:
            raise ContentNotFound(f"block {missing} below {root} is not in this store")
        self._pins[root, pin.owner, pin.label] = (pin.expires_ms, True)

    async def unpin(self, root: Cid, pin: Pin) -> None:
        """Drop a pin: see `ContentStore.unpin`."""
        self._check_open()
        self._pins.pop((root, pin.owner, pin.label), None)

    async def pins(self, label_prefix: str = "") -> list[tuple[Cid, Pin]]:
        """List the pins whose label begins with `label_prefix`."""
        self._check_open()
        return [
            (root, Pin(owner, label, expires_ms))
            for (root, owner, label), (expires_ms, _) in self._pins.items()
            if label.startswith(label_prefix)
        ]

    async def collect(self, now_ms: int, grace_s: float = COLLECT_GRACE_S) -> Collected:
        """Drop ended pins and what nothing holds: see `ContentStore.collect`."""
        self._check_open()
        self._pins = {
            key: (expires_ms, recursive)
            for key, (expires_ms, recursive) in self._pins.items()
            if expires_ms is None or expires_ms > now_ms
        }
        held = {root for root, _, _ in self._pins}
        held |= self._reach(root for (root, _, _), (_, recursive) in self._pins.items() if recursive)
        newest = now_ms - round(grace_s * 1000)
        dropped = [cid for cid, (_, added_ms) in self._blocks.items() if cid not in held and added_ms <= newest]
        return Collected(len(dropped), sum(len(self._blocks.pop(cid)[0]) for cid in dropped))

    async def sync(self) -> None:
        """Do nothing: memory survives nothing."""
        self._check_open()

    async def close(self) -> None:
        """Forget everything."""
        self._closed = True
        self._blocks = {}
        self._pins = {}

    def _reach(self, roots: Iterable[Cid]) -> set[Cid]:
        todo = list(roots)
        seen = set(todo)
        while todo:
            cid = todo.pop()
            if cid.codec != RAW and cid in self._blocks:
                new = set(links(cid, self._blocks[cid][0])) - seen
                seen |= new
                todo.extend(new)
        return seen

    def _check_open(self) -> None:
        if self._closed:
            raise ContentUnavailable("the content store is closed")
