"""The embedded store under several processes, kill -9, and a disk that is full."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dim_pipelines.content import unixfs
from dim_pipelines.content.embedded import EmbeddedContentStore
from dim_pipelines.content.store import Block, Pin
from dim_pipelines.domain.cid import RAW, Cid
from dim_pipelines.errors import ContentUnavailable

WRITER = """
import asyncio, random, sys
from pathlib import Path
from dim_pipelines.content.embedded import EmbeddedContentStore
from dim_pipelines.content.store import Block, Pin
from dim_pipelines.domain.cid import RAW, Cid

async def main(folder, seed, rounds):
    store = await EmbeddedContentStore.open(Path(folder))
    numbers = random.Random(seed)
    for _ in range(rounds):
        sizes = [numbers.choice((10, 5_000, 65_536, 65_537, 300_000)) for _ in range(numbers.randrange(1, 6))]
        blocks = [Block(Cid.of(RAW, data), data) for data in map(numbers.randbytes, sizes)]
        await store.put(blocks, pin=Pin("local", f"writer/{seed}"))
        if numbers.random() < 0.2:
            await store.sync()
        print(*(block.cid for block in blocks), flush=True)
    await store.close()

asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
"""


def write(folder: Path, seed: int, rounds: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(folder), str(seed), str(rounds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def files_in(folder: Path) -> list[Path]:
    return list(folder.iterdir())


def acknowledged(writer: subprocess.Popen[str]) -> list[Cid]:
    assert writer.stdout is not None
    lines = writer.stdout.read().split("\n")[:-1]  # the last may be cut
    writer.stdout.close()
    writer.wait()
    return [Cid.parse(text) for line in lines for text in line.split()]


async def check(folder: Path, cids: list[Cid]) -> None:
    """Every block that was acknowledged is there, right and pinned; no file is only a part of its block."""
    store = await EmbeddedContentStore.open(folder)
    assert {block.cid async for block in store.get_many(cids)} == set(cids)
    assert set(cids) <= {root for root, _ in await store.pins()}
    for path in (folder / "files").glob("*/*"):
        assert Cid.parse(path.name).names(path.read_bytes())
    assert await store.have(cids) == set(cids)
    await store.close()


async def test_nothing_acknowledged_is_lost_by_kill_9(tmp_path: Path) -> None:
    numbers = random.Random(os.urandom(8))
    cids: list[Cid] = []
    for seed in range(5):
        writer = write(tmp_path, seed, 10_000)
        assert writer.stdout is not None
        first = writer.stdout.readline()  # it is at work
        await asyncio.sleep(numbers.uniform(0.0, 0.15))
        writer.send_signal(signal.SIGKILL)
        cids += [Cid.parse(text) for text in first.split()] + acknowledged(writer)
        await check(tmp_path, cids)
    assert len(cids) >= 5


async def test_several_processes_write_one_folder_while_another_collects(tmp_path: Path) -> None:
    writers = [write(tmp_path, seed, 15) for seed in (100, 101, 100)]
    store = await EmbeddedContentStore.open(tmp_path)
    while any(writer.poll() is None for writer in writers):
        garbage = os.urandom(70_000)
        await store.put([Block(Cid.of(RAW, garbage), garbage)])
        await store.collect(time.time_ns() // 1_000_000 + 1000, grace_s=0.0)
    found = [acknowledged(writer) for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0, 0]
    assert found[0] == found[2] != found[1]
    await check(tmp_path, found[0] + found[1])
    await store.close()


@pytest.fixture
def small_disk(tmp_path: Path, require: Callable[[bool, str, str], None]) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    mounted = os.geteuid() == 0 and subprocess.run(command, capture_output=True, check=False).returncode == 0
    require(mounted, "the right to mount a tmpfs", "run the tests as root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("size", [20_000, 200_000])
async def test_a_full_disk_is_one_clear_error_and_nothing_is_corrupt(small_disk: Path, size: int) -> None:
    store = await EmbeddedContentStore.open(small_disk / "store")
    stored: list[Block] = []
    with pytest.raises(ContentUnavailable, match="no space left") as raised:
        while True:
            blocks = [Block(Cid.of(RAW, data), data) for data in (os.urandom(size) for _ in range(5))]
            await store.put(blocks, pin=Pin("local", "x"))
            stored += blocks
    assert "dim gc" in raised.value.hint
    assert stored
    assert [block async for block in store.get_many([block.cid for block in stored])] == stored
    await store.close()
    store = await EmbeddedContentStore.open(small_disk / "store")
    assert [block async for block in store.get_many([block.cid for block in stored])] == stored
    assert await store.have([block.cid for block in blocks]) == frozenset()
    assert len(await store.pins()) == len(stored)
    await store.close()


async def test_a_file_larger_than_the_disk_leaves_no_trace(small_disk: Path, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(os.urandom(1 << 20) * 20)
    store = await EmbeddedContentStore.open(tmp_path / "store")
    cid = await unixfs.add_file(store, tmp_path / "large")
    with pytest.raises(ContentUnavailable, match="no space left"):
        await unixfs.read_file(store, cid, small_disk / "large")
    assert files_in(small_disk) == []
    await store.close()
