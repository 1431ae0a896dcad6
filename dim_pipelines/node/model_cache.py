"""Models on the node's disk: written from the content store, checked by CID, dropped least recently used first.

A model is a folder under its CID, renamed into place when whole. What lay there before this daemon started is
hashed again before its first use, so a file that was cut short by a loss of power is never loaded. A model
in use is never dropped. One daemon owns the folder (it holds the home's lock).
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dim_pipelines.content.memory import MemoryContentStore
from dim_pipelines.content.store import Block, ContentStore, Pin
from dim_pipelines.content.unixfs import add_folder, file_size, list_folder, read_bytes, read_folder
from dim_pipelines.domain.cid import Cid
from dim_pipelines.domain.model import DESCRIPTION_FILE, ModelDescription
from dim_pipelines.errors import InputError, NodeRefused

MAX_DESCRIPTION_BYTES: Final = 1 << 20
"""The largest `dim-model.json` that is read."""

Progress = Callable[[str, int, int], None]
"""Is told (stage, done, total)."""


@dataclass(frozen=True, slots=True)
class CachedModel:
    """A model on the disk: its CID, folder, description, and the bytes of its files."""

    cid: Cid
    folder: Path
    description: ModelDescription
    bytes: int


class ModelCache:
    """The folder of models, within a budget of bytes."""

    def __init__(self, folder: Path, budget: int) -> None:
        """Open the folder and drop what a killed daemon left half-written.

        Args:
            folder: made when missing.
            budget: bytes that all models may take together.
        """
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = folder
        self._budget = budget
        self._sizes: dict[Cid, int] = {}
        self._used: dict[Cid, float] = {}
        self._vouchers_file = folder.with_name(f"{folder.name}.signatures.json")
        self._vouchers = _read_vouchers(self._vouchers_file)
        self._users: defaultdict[Cid, int] = defaultdict(int)
        self._checked: set[Cid] = set()
        self._locks: defaultdict[Cid, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._room = asyncio.Lock()
        for path in sorted(folder.iterdir()):
            try:
                cid = Cid.parse(path.name)
            except InputError:
                shutil.rmtree(path, ignore_errors=True)
                continue
            self._sizes[cid] = _size_of(path)
            self._used[cid] = path.stat().st_mtime

    @property
    def bytes(self) -> int:
        """Bytes of all models on the disk."""
        return sum(self._sizes.values())

    def __contains__(self, cid: Cid) -> bool:
        """Tell whether a model is on the disk."""
        return cid in self._sizes

    def models(self) -> list[Cid]:
        """List the models on the disk, most recently used first."""
        return sorted(self._sizes, key=lambda cid: self._used.get(cid, 0.0), reverse=True)

    def vouch(self, cid: Cid, signatures: Sequence[Cid]) -> None:
        """Remember with which signatures a model was let in, so that the node's owner can measure it later."""
        if signatures and self._vouchers.get(cid) != tuple(signatures):
            self._vouchers[cid] = tuple(signatures)
            self._write_vouchers()

    def vouchers(self, cid: Cid) -> tuple[Cid, ...]:
        """Give the signatures with which a model on the disk was let in."""
        return self._vouchers.get(cid, ())

    async def acquire(self, cid: Cid, store: ContentStore, progress: Progress | None = None) -> CachedModel:
        """Bring a model to the disk and hold it there; each call wants one `release`.

        Raises:
            InputError: it is no model package.
            NodeRefused: it is larger than the budget leaves.
            ContentError: its blocks cannot be read.
        """
        told = progress or (lambda stage, done, total: None)
        async with self._locks[cid]:
            path = self._folder / str(cid)
            if cid in self._sizes and cid not in self._checked:
                told("verify", 0, self._sizes[cid])
                if await _hashed(path) != cid:
                    await self._drop(cid)
            if cid not in self._sizes:
                await self._bring(cid, store, path, told)
            self._checked.add(cid)
            self._users[cid] += 1
        try:
            description = ModelDescription.from_json(await asyncio.to_thread((path / DESCRIPTION_FILE).read_bytes))
        except BaseException:
            self.release(cid)
            raise
        return CachedModel(cid, path, description, self._sizes[cid])

    def release(self, cid: Cid) -> None:
        """Give up one hold; the model stays until its room is wanted."""
        self._users[cid] -= 1
        path = self._folder / str(cid)
        if path.exists():
            os.utime(path)
            self._used[cid] = path.stat().st_mtime

    async def _bring(self, cid: Cid, store: ContentStore, path: Path, told: Progress) -> None:
        listing = await list_folder(store, cid)
        total = sum([await file_size(store, file) for file in listing.values()])
        told("fetch", 0, total)
        async with self._room:
            await self._make_room(cid, total)
            self._sizes[cid] = total  # taken from the budget before it is written
            self._users[cid] += 1
        try:
            await read_folder(store, cid, path)
        except BaseException:
            self._sizes.pop(cid, None)
            raise
        finally:
            self._users[cid] -= 1
        told("fetch", total, total)

    async def _make_room(self, cid: Cid, wanted: int) -> None:
        idle = sorted((key for key in self._sizes if not self._users[key]), key=lambda key: self._used.get(key, 0.0))
        free = self._budget - self.bytes
        possible = free + sum(self._sizes[key] for key in idle)
        if wanted > possible:
            raise NodeRefused(
                f"model {cid} has {wanted} bytes, the node's model cache has room for {max(0, possible)}",
                hint="give the node a larger model cache",
            )
        for key in idle:
            if wanted <= self._budget - self.bytes:
                return
            await self._drop(key)

    async def _drop(self, cid: Cid) -> None:
        self._sizes.pop(cid, None)
        if self._vouchers.pop(cid, None):
            self._write_vouchers()
        self._checked.discard(cid)
        await asyncio.to_thread(shutil.rmtree, self._folder / str(cid), ignore_errors=True)

    def _write_vouchers(self) -> None:
        listed = {str(cid): [str(each) for each in signatures] for cid, signatures in self._vouchers.items()}
        fresh = self._vouchers_file.with_name(f".{self._vouchers_file.name}.{os.getpid()}")
        fresh.write_text(json.dumps(listed), encoding="utf-8")
        fresh.replace(self._vouchers_file)


async def read_description(store: ContentStore, cid: Cid) -> ModelDescription:
    """Read a package's `dim-model.json` alone: plain JSON, which is safe to read before any signature is checked.

    Raises:
        InputError: it is no model package.
        ContentError: its blocks cannot be read.
    """
    listing = await list_folder(store, cid)
    if DESCRIPTION_FILE not in listing:
        raise InputError(f"{cid} is not a model package: it has no {DESCRIPTION_FILE}")
    return ModelDescription.from_json(await read_bytes(store, listing[DESCRIPTION_FILE], limit=MAX_DESCRIPTION_BYTES))


class _Discarding(MemoryContentStore):
    """Takes blocks and keeps none: what remains of an `add` is the CID."""

    async def put(self, blocks: Sequence[Block], *, pin: Pin | None = None) -> None:
        """Keep nothing."""


async def _hashed(path: Path) -> Cid | None:
    """Name what lies in a folder; None when it cannot be read."""

    def files() -> dict[str, Path | bytes]:
        return {str(file.relative_to(path)): file for file in path.rglob("*") if file.is_file()}

    try:
        return await add_folder(_Discarding(), await asyncio.to_thread(files))
    except InputError:
        return None


def _read_vouchers(path: Path) -> dict[Cid, tuple[Cid, ...]]:
    """Read which signatures let which models in; what cannot be read is asked for again."""
    try:
        listed = json.loads(path.read_bytes())
        return {Cid.parse(cid): tuple(Cid.parse(each) for each in signatures) for cid, signatures in listed.items()}
    except (OSError, ValueError, TypeError, AttributeError, InputError):
        return {}


def _size_of(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
