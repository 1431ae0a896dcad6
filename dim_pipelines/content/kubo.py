"""The content store in a Kubo: many blocks per call in, wide reads out, and nothing believed unverified."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final, Self, TypeVar

from dim_pipelines.content.kubo_address import find_secret
from dim_pipelines.content.kubo_calls import KuboCalls
from dim_pipelines.content.kubo_pins import (
    ALL,
    FRESH,
    GROUP,
    WRAPPER,
    PinName,
    group_cids,
    holder,
    label_filter,
    wrapper_block,
)
from dim_pipelines.content.kubo_privacy import is_private
from dim_pipelines.content.kubo_rpc import KuboRpc
from dim_pipelines.content.store import COLLECT_GRACE_S, Block, Collected, Pin
from dim_pipelines.content.verify import check_blocks
from dim_pipelines.domain.cid import Cid
from dim_pipelines.errors import ConfigurationError, ContentUnavailable
from dim_pipelines.settings import Home

READ_THREADS: Final = 32
"""Reads at a time: a block of another peer takes 40 ms alone and 1.8 ms each with 32 (measured)."""
_READ_AHEAD: Final = 64
_CAR_BYTES: Final = 8 << 20
_CAR_BLOCKS: Final = 1000

T = TypeVar("T")


class KuboContentStore:
    """Blocks and pins of a Kubo, through its RPC. Make one with `connect`.

    `sync` can do nothing here: what Kubo has acknowledged is as durable as its own `Datastore.Spec` says; a
    Kubo that DIM starts has `sync: true`, a foreign one often has not, and `connect` logs a warning then.
    What is put without a pin is held for `COLLECT_GRACE_S` by a pin of its own, because Kubo's collection
    knows no age.
    """

    def __init__(self, rpc: KuboRpc, peer_id: str, *, writable: bool) -> None:
        """Use `connect`."""
        self._rpc = rpc
        self._calls = KuboCalls(rpc)
        self._peer_id = peer_id
        self._writable = writable
        self._threads = ThreadPoolExecutor(READ_THREADS, thread_name_prefix="dim-kubo")
        self._closed = False

    @classmethod
    async def connect(
        cls, address: str, *, timeout_s: float = 20.0, public: bool = False, home: Home | None = None
    ) -> Self:
        """Reach the Kubo whose RPC is at `address`.

        Args:
            address: a multiaddr (`/ip4/127.0.0.1/tcp/5001`) or an http URL.
            timeout_s: how long Kubo may look for a block, and how long an answer may pause.
            public: allow adding to a Kubo that is not shown to be private (`kubo_privacy`).
            home: where to look for the Kubo's secret; `DIM_HOME` when left out.

        Raises:
            ConfigurationError: what answers is not a Kubo, or the address is malformed.
            ContentUnavailable: nothing answers.
        """
        rpc = KuboRpc(address, timeout_s, find_secret(address, home))

        def look() -> tuple[str, bool]:
            calls = KuboCalls(rpc)
            peer_id = calls.peer_id()
            calls.warn_if_not_durable()
            return peer_id, public or is_private(rpc, peer_id)

        try:
            peer_id, writable = await asyncio.to_thread(look)
        except BaseException:
            rpc.close()
            raise
        return cls(rpc, peer_id, writable=writable)

    @property
    def swarm(self) -> str:
        """`kubo:` and the peer id: who is connected to the same Kubo needs no copies."""
        return f"kubo:{self._peer_id}"

    @property
    def address(self) -> str:
        """The address of the RPC, as it was given."""
        return self._rpc.address

    async def put(self, blocks: Sequence[Block], *, pin: Pin | None = None) -> None:
        """Store blocks, up to 1000 or 8 MiB in one CAR file: see `ContentStore.put`.

        Raises:
            ConfigurationError: this Kubo is not shown to be private, and `public` was not given.
        """

        def put() -> None:
            check_blocks(blocks)
            for part in _parts(blocks):
                self._calls.put_group(part, pin)

        self._check_writable()
        await self._run(put)

    async def get(self, cid: Cid) -> bytes:
        """Read one block, verified: see `ContentStore.get`."""
        return await self._run(lambda: self._calls.get(cid))

    async def get_many(self, cids: Sequence[Cid]) -> AsyncGenerator[Block, None]:
        """Read blocks in order, 32 at a time: see `ContentStore.get_many`."""
        ahead: deque[asyncio.Future[bytes]] = deque()
        started = 0
        try:
            for cid in cids:
                while started < len(cids) and len(ahead) < _READ_AHEAD:
                    ahead.append(asyncio.ensure_future(self.get(cids[started])))
                    started += 1
                yield Block(cid, await ahead.popleft())
        finally:
            for future in ahead:
                future.cancel()
            await asyncio.gather(*ahead, return_exceptions=True)

    async def have(self, cids: Sequence[Cid]) -> frozenset[Cid]:
        """Tell which blocks this Kubo holds itself."""
        found = await asyncio.gather(*(self._run(partial(self._calls.has, cid)) for cid in cids))
        return frozenset(cid for cid, here in zip(cids, found, strict=True) if here)

    async def pin(self, root: Cid, pin: Pin) -> None:
        """Hold everything below `root`, fetching from peers what is missing here: see `ContentStore.pin`."""
        wrapper = wrapper_block(root, pin)
        name = PinName(WRAPPER, pin, root).text()

        def hold() -> None:
            self._calls.put_group([wrapper], None)  # so that no collection takes it before its own pin stands
            self._calls.pin_all(wrapper.cid, name, root)

        self._check_writable()
        await self._run(hold)

    async def unpin(self, root: Cid, pin: Pin) -> None:
        """Drop a pin; of a group of blocks that were put together, the rest stays held."""

        def drop() -> None:
            self._calls.remove_pins([wrapper_block(root, pin).cid])
            for group, name in self._calls.named(f":{holder(pin)}"):
                if name.form == GROUP and (name.pin.owner, name.pin.label) == (pin.owner, pin.label):
                    self._calls.take_out(group, name, root)

        await self._run(drop)

    async def pins(self, label_prefix: str = "") -> list[tuple[Cid, Pin]]:
        """List DIM's pins whose label begins with `label_prefix`, groups by their members."""

        def named() -> list[tuple[Cid, PinName]]:
            found = self._calls.named(label_filter(label_prefix))
            return [each for each in found if each[1].form != FRESH and each[1].pin.label.startswith(label_prefix)]

        found: dict[tuple[Cid, str, str], Pin] = {}
        groups: list[tuple[Cid, Pin]] = []
        for cid, name in await self._run(named):
            if name.root is None:
                groups.append((cid, name.pin))
            else:
                found[name.root, name.pin.owner, name.pin.label] = name.pin
        pins = iter(groups)
        async for block in self.get_many([cid for cid, _ in groups]):
            _, pin = next(pins)
            for cid in group_cids(block.data):
                found.setdefault((cid, pin.owner, pin.label), pin)
        return [(cid, pin) for (cid, _, _), pin in found.items()]

    async def collect(self, now_ms: int, grace_s: float = COLLECT_GRACE_S) -> Collected:
        """Drop ended pins, then let Kubo drop all that no pin of anybody holds: see `ContentStore.collect`.

        Kubo does not say how large a dropped block was: the bytes are how much its repository shrank.
        """
        newest_ms = now_ms - round(grace_s * 1000)

        def ended(name: PinName) -> bool:
            limit = newest_ms if name.form == FRESH else now_ms
            return name.pin.expires_ms is not None and name.pin.expires_ms <= limit

        def collect() -> Collected:
            self._calls.adopt_unnamed()
            self._calls.remove_pins([cid for cid, name in self._calls.named(ALL) if ended(name)])
            before = self._calls.size()
            dropped = self._calls.collect_garbage()
            return Collected(dropped, max(0, before - self._calls.size()))

        return await self._run(collect)

    async def sync(self) -> None:
        """Return at once: see the class."""
        self._check_open()

    async def close(self) -> None:
        """Let the calls under way finish and close the sessions; twice is once."""
        self._closed = True
        await asyncio.to_thread(self._threads.shutdown, cancel_futures=True)
        self._rpc.close()

    async def _run(self, work: Callable[[], T]) -> T:
        self._check_open()
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def _check_open(self) -> None:
        if self._closed:
            raise ContentUnavailable("the content store is closed")

    def _check_writable(self) -> None:
        if not self._writable:
            raise ConfigurationError(
                f"the Kubo at {self.address} is not shown to be private: all the world could read what is added",
                hint="use a Kubo with a swarm key, or --ipfs embedded, or allow it with --public",
            )


def _parts(blocks: Sequence[Block]) -> Iterator[list[Block]]:
    part: list[Block] = []
    size = 0
    for block in blocks:
        part.append(block)
        size += len(block.data)
        if size >= _CAR_BYTES or len(part) >= _CAR_BLOCKS:
            yield part
            part, size = [], 0
    if part:
        yield part
