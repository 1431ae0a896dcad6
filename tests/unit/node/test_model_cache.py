from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from dim_pipelines.content.memory import MemoryContentStore
from dim_pipelines.content.unixfs import add_folder
from dim_pipelines.domain.cid import Cid
from dim_pipelines.domain.model import ModelDescription, ModelInput
from dim_pipelines.errors import ContentNotFound, InputError, NodeRefused
from dim_pipelines.node.model_cache import ModelCache, read_description

KIB = 1 << 10


class CountingStore(MemoryContentStore):
    def __init__(self) -> None:
        super().__init__()
        self.reads = 0

    async def get(self, cid: Cid) -> bytes:
        self.reads += 1
        await asyncio.sleep(0)
        return await super().get(cid)


def described(name: str) -> bytes:
    tensor = ModelInput(name="x", datatype="FP32", shape=())
    return ModelDescription(name=name, version="1", engine="echo", licence="MIT", inputs=(tensor,)).to_json()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


async def add(store: MemoryContentStore, name: str, size: int = 10 * KIB) -> Cid:
    return await add_folder(
        store, {"dim-model.json": described(name), "deep/weights": name.encode() * (size // len(name))}
    )


async def test_a_model_is_written_once_and_read_from_the_disk(tmp_path: Path) -> None:
    store = CountingStore()
    model = await add(store, "one")
    cache = ModelCache(tmp_path, 100 * KIB)
    told: list[str] = []
    held = await asyncio.gather(
        *(cache.acquire(model, store, lambda stage, done, total: told.append(stage)) for _ in range(5))
    )
    assert told == ["fetch", "fetch"] and len({item.folder for item in held}) == 1
    assert held[0].description.name == "one" and (held[0].folder / "deep" / "weights").stat().st_size > 9 * KIB
    assert cache.bytes == held[0].bytes and model in cache
    reads = store.reads
    await cache.acquire(model, store)
    assert store.reads == reads


async def test_the_least_recently_used_gives_way_and_what_is_used_never_does(tmp_path: Path) -> None:
    store = MemoryContentStore()
    one, two, three, four = [await add(store, name) for name in ("one", "two", "three", "four")]
    cache = ModelCache(tmp_path, 25 * KIB)
    await cache.acquire(one, store)
    await cache.acquire(two, store)
    with pytest.raises(NodeRefused, match="has room for"):
        await cache.acquire(three, store)
    cache.release(two)
    await cache.acquire(three, store)
    assert one in cache and two not in cache and not (tmp_path / str(two)).exists()
    cache.release(one)
    cache.release(three)
    await cache.acquire(one, store)
    await cache.acquire(four, store)
    assert names(tmp_path) == {str(one), str(four)}
    with pytest.raises(NodeRefused):
        await cache.acquire(await add(store, "large", 26 * KIB), store)


async def test_a_damaged_model_is_fetched_again_after_a_restart(tmp_path: Path) -> None:
    store = MemoryContentStore()
    model = await add(store, "one")
    held = await ModelCache(tmp_path, 100 * KIB).acquire(model, store)
    weights = held.folder / "deep" / "weights"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:100])
    (tmp_path / f"{model}.partial").mkdir()
    cache = ModelCache(tmp_path, 100 * KIB)
    assert not (tmp_path / f"{model}.partial").exists() and model in cache
    await cache.acquire(model, store)
    assert weights.read_bytes() == whole
    intact = ModelCache(tmp_path, 100 * KIB)
    await intact.acquire(model, MemoryContentStore())  # nothing needs to be read from the store
    weights.write_bytes(b"x")
    with pytest.raises(ContentNotFound):
        await ModelCache(tmp_path, 100 * KIB).acquire(model, MemoryContentStore())


async def test_what_cannot_be_brought_leaves_nothing(tmp_path: Path) -> None:
    store = MemoryContentStore()
    cache = ModelCache(tmp_path, 100 * KIB)
    with pytest.raises(ContentNotFound):
        await cache.acquire(await add(MemoryContentStore(), "elsewhere"), store)
    nothing = await add_folder(store, {"weights": b"x"})
    with pytest.raises(InputError, match=r"no dim-model\.json"):
        await read_description(store, nothing)
    assert cache.bytes == 0 and names(tmp_path) == set()


async def test_a_package_without_a_description_is_not_held(tmp_path: Path) -> None:
    store = MemoryContentStore()
    broken = await add_folder(store, {"dim-model.json": b"{}", "weights": bytes(50 * KIB)})
    cache = ModelCache(tmp_path, 100 * KIB)
    with pytest.raises(InputError):
        await cache.acquire(broken, store)
    await cache.acquire(await add(store, "large", 90 * KIB), store)
    assert broken not in cache
