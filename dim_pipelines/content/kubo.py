"""The content store in a Kubo: many blocks per call in, wide reads out, and nothing believed unverified."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final, Self, TypeVar

from dim_pipelines.content.car import encode_car
from dim_pipelines.content.kubo_pins import (
    ALL,
    FRESH,
    GROUP,
    WRAPPER,
    PinName,
    group_block,
    group_cids,
    holder,
    label_filter,
    wrapper_block,
)
from dim_pipelines.content.kubo_privacy import is_private
from dim_pipelines.content.kubo_rpc import KuboRpc
from dim_pipelines.content.store import COLLECT_GRACE_S, Block, Collected, Pin
from dim_pipelines.content.verify import check_block, check_blocks
from dim_pipelines.domain.cid import Cid
from dim_pipelines.errors import ConfigurationError, ContentError, ContentNotFound, ContentUnavailable

READ_THREADS: Final = 32
"""Reads at a time: a block of another peer takes 40 ms alone and 1.8 ms each with 32 (measured)."""
_READ_AHEAD: Final = 64
_CAR_BYTES: Final = 8 << 20
_CAR_BLOCKS: Final = 1000
_UNPIN_AT_ONCE: Final = 500
_COLLECT_S: Final = 1800.0

T = TypeVar("T")
_log = logging.getLogger(__name__)


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
        self._peer_id = peer_id
        self._writable = writable
        self._threads = ThreadPoolExecutor(READ_THREADS, thread_name_prefix="dim-kubo")
        self._closed = False

    @classmethod
    async def connect(cls, address: str, *, timeout_s: float = 20.0, public: bool = False) -> Self:
        """Reach the Kubo whose RPC is at `address`.

        Args:
            address: a multiaddr (`/ip4/127.0.0.1/tcp/5001`) or an http URL.
            timeout_s: how long Kubo may look for a block, and how long an answer may pause.
            public: allow adding to a Kubo that is not shown to be private (`kubo_privacy`).

        Raises:
            ConfigurationError: what answers is not a Kubo, or the address is malformed.
            ContentUnavailable: nothing answers.
        """
        rpc = KuboRpc(address, timeout_s)

        def look() -> tuple[str, bool]:
            peer_id = _peer_id(rpc)
            _warn_if_not_durable(rpc)
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
                self._put_group(part, pin)

        self._check_writable()
        await self._run(put)

    async def get(self, cid: Cid) -> bytes:
        """Read one block, verified: see `ContentStore.get`."""
        return await self._run(lambda: self._get(cid))

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

        def has(cid: Cid) -> bool:
            try:
                self._rpc.json("/block/stat", str(cid), options={"offline": "true"})
            except ContentNotFound:
                return False
            return True

        found = await asyncio.gather(*(self._run(partial(has, cid)) for cid in cids))
        return frozenset(cid for cid, here in zip(cids, found, strict=True) if here)

    async def pin(self, root: Cid, pin: Pin) -> None:
        """Hold everything below `root`, fetching from peers what is missing here: see `ContentStore.pin`."""
        wrapper = wrapper_block(root, pin)
        name = PinName(WRAPPER, pin, root).text()

        def hold() -> None:
            self._put_group([wrapper], None)  # so that no collection takes it before its own pin stands
            self._pin_all(wrapper.cid, name, root)

        self._check_writable()
        await self._run(hold)

    async def unpin(self, root: Cid, pin: Pin) -> None:
        """Drop a pin; of a group of blocks that were put together, the rest stays held."""

        def drop() -> None:
            self._remove_pins([wrapper_block(root, pin).cid])
            for group, name in self._named(f":{holder(pin)}"):
                if name.form == GROUP and (name.pin.owner, name.pin.label) == (pin.owner, pin.label):
                    self._take_out(group, name, root)

        await self._run(drop)

    async def pins(self, label_prefix: str = "") -> list[tuple[Cid, Pin]]:
        """List DIM's pins whose label begins with `label_prefix`, groups by their members."""

        def named() -> list[tuple[Cid, PinName]]:
            found = self._named(label_filter(label_prefix))
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
            self._adopt_unnamed()
            self._remove_pins([cid for cid, name in self._named(ALL) if ended(name)])
            before = self._size()
            dropped = self._rpc.json("/repo/gc", timeout_s=_COLLECT_S)
            failed = [each["Error"] for each in dropped if each.get("Error")]
            if failed:
                raise ContentUnavailable(f"the Kubo at {self.address} could not collect: {failed[0]}")
            return Collected(len(dropped), max(0, before - self._size()))

        return await self._run(collect)

    async def sync(self) -> None:
        """Return at once: see the class."""
        self._check_open()

    async def close(self) -> None:
        """Let the calls under way finish and close the sessions; twice is once."""
        self._closed = True
        await asyncio.to_thread(self._threads.shutdown, cancel_futures=True)
        self._rpc.close()

    def _put_group(self, blocks: Sequence[Block], pin: Pin | None) -> None:
        now_ms = time.time_ns() // 1_000_000
        name = PinName(FRESH, Pin("", "", now_ms)) if pin is None else PinName(GROUP, pin)
        text = name.text()
        group = group_block([block.cid for block in blocks], name.pin)
        if problem := self._import([*blocks, group], group.cid):
            raise ContentUnavailable(f"the Kubo at {self.address} did not keep the blocks: {problem}")
        self._name_pin(group.cid, text)

    def _pin_all(self, cid: Cid, name: str, root: Cid) -> None:
        """Pin recursively, for as long as Kubo gets on with it: a large tree takes minutes, a gap stops it for ever."""
        alone = not self._has_peers()
        done, moved = -1, time.monotonic()
        for each in self._rpc.stream("/pin/add", str(cid), options={"name": name, "progress": "true"}):
            if each.get("Pins"):
                return
            progress, now = int(each.get("Progress") or 0), time.monotonic()
            if progress != done:
                done, moved = progress, now
            elif now - moved > self._rpc.timeout_s or (alone and self._is_incomplete(cid)):
                break
        raise ContentNotFound(f"something below {root} is not in the Kubo at {self.address}, nor found by it")

    def _is_incomplete(self, cid: Cid) -> bool:
        options = {"recursive": "true", "unique": "true", "offline": "true"}
        return any(each.get("Err") for each in self._rpc.stream("/refs", str(cid), options=options))

    def _import(self, blocks: Sequence[Block], root: Cid) -> str:
        """Send blocks and pin `root` in one step that Kubo's collection cannot come between.

        Returns: why the root could not be pinned; empty when it is.
        """
        answers = self._rpc.json(
            "/dag/import",
            options={"pin-roots": "true", "stats": "true"},
            body=list(encode_car(blocks, [root])),
        )
        stored = sum(int(each["Stats"]["BlockCount"]) for each in answers if "Stats" in each)
        roots = [each["Root"] for each in answers if "Root" in each]
        if stored != len(blocks) or [each["Cid"]["/"] for each in roots] != [str(root)]:
            raise ContentUnavailable(f"the Kubo at {self.address} took {stored} of {len(blocks)} blocks")
        return str(roots[0]["PinErrorMsg"])

    def _name_pin(self, cid: Cid, name: str) -> None:
        self._rpc.json("/pin/add", str(cid), options={"name": name, "timeout": self._server_timeout})

    def _get(self, cid: Cid) -> bytes:
        try:
            data = self._rpc.read("/block/get", str(cid), options={"offline": "true"})
        except ContentNotFound:
            if not self._has_peers():
                raise
            data = self._rpc.read("/block/get", str(cid), options={"timeout": self._server_timeout})
        return check_block(cid, data)

    def _named(self, text: str) -> list[tuple[Cid, PinName]]:
        options = {"type": "recursive", "names": "true", "name": text, "stream": "true"}
        found: list[tuple[Cid, PinName]] = []
        for each in self._rpc.json("/pin/ls", options=options):
            name = PinName.parse(str(each.get("Name", "")))
            if name is not None:
                found.append((Cid.parse(str(each["Cid"])), name))
        return found

    def _adopt_unnamed(self) -> None:
        """Give groups and wrappers whose writer died before it named them a name that ends."""
        options = {"type": "recursive", "names": "true", "stream": "true"}
        name = PinName(FRESH, Pin("", "", time.time_ns() // 1_000_000)).text()
        for each in self._rpc.json("/pin/ls", options=options):
            if not each.get("Name") and str(each["Cid"]).startswith("bafyrei"):
                block = self._rpc.read("/block/get", str(each["Cid"]), options={"offline": "true"})
                if b"dkindgdim/pin" in block or b"dkindhdim/held" in block:
                    self._name_pin(Cid.parse(str(each["Cid"])), name)

    def _remove_pins(self, cids: Sequence[Cid]) -> None:
        for start in range(0, len(cids), _UNPIN_AT_ONCE):
            try:
                self._rpc.json("/pin/rm", *(str(cid) for cid in cids[start : start + _UNPIN_AT_ONCE]))
            except ContentError as error:
                if "not pinned" not in error.message:
                    raise
                if len(cids) > 1:  # one of them was dropped by somebody else: Kubo then drops none
                    for cid in cids[start : start + _UNPIN_AT_ONCE]:
                        self._remove_pins([cid])

    def _take_out(self, group: Cid, name: PinName, cid: Cid) -> None:
        members = group_cids(self._get(group))
        if cid not in members:
            return
        if rest := [each for each in members if each != cid]:
            smaller = group_block(rest, name.pin)
            self._import([smaller], smaller.cid)
            self._name_pin(smaller.cid, name.text())
        # What leaves a pin is held as if it had just been put: work in flight may still count on it.
        self._name_pin(group, PinName(FRESH, Pin("", "", time.time_ns() // 1_000_000)).text())

    def _has_peers(self) -> bool:
        return any(each.get("Peers") for each in self._rpc.json("/swarm/peers"))

    def _size(self) -> int:
        return sum(int(each["RepoSize"]) for each in self._rpc.json("/repo/stat", options={"size-only": "true"}))

    @property
    def _server_timeout(self) -> str:
        return f"{max(0.1, self._rpc.timeout_s * 0.9):.3f}s"

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


def _peer_id(rpc: KuboRpc) -> str:
    answers: list[dict[str, Any]] = rpc.json("/id")
    if len(answers) != 1 or not str(answers[0].get("AgentVersion", "")).startswith("kubo/") or not answers[0].get("ID"):
        raise rpc.not_a_kubo()
    return str(answers[0]["ID"])


def _warn_if_not_durable(rpc: KuboRpc) -> None:
    [config] = rpc.json("/config/show")
    mounts = config.get("Datastore", {}).get("Spec", {}).get("mounts", [])
    if any(mount.get("type") == "flatfs" and not mount.get("sync") for mount in mounts):
        _log.warning(
            "the Kubo at %s does not sync what it stores: a loss of power may lose blocks (Datastore.Spec, sync)",
            rpc.address,
        )
