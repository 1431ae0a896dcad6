"""A large file goes in and out of each store in constant memory.

`make soak` moves the size that counts (2 GiB); otherwise the file is small enough for every run, and the bound
shows the same.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SIZE = 2 << 30 if os.environ.get("DIM_SOAK") else 128 << 20
MOST = 200 << 20
"""RSS of a process that moves 2 GiB."""
GROWTH = 96 << 20
"""What the moving itself may take, beside the imports: less than the smallest file that is tried."""

MOVER = """
import asyncio, json, sys, time
from pathlib import Path
from dim_pipelines.content import unixfs
from dim_pipelines.content.embedded import EmbeddedContentStore
from dim_pipelines.content.kubo import KuboContentStore
from dim_pipelines.content.store import Pin

def memory(name):
    for line in open("/proc/self/status"):
        if line.startswith(name):
            return int(line.split()[1]) * 1024

async def main(place, source, target):
    if place.startswith("/ip4/"):
        store = await KuboContentStore.connect(place)
    else:
        store = await EmbeddedContentStore.open(Path(place))
    before = memory("VmRSS")
    started = time.monotonic()
    cid = await unixfs.add_file(store, Path(source), pin=Pin("local", "soak"))
    await store.sync()
    between = time.monotonic()
    size = await unixfs.read_file(store, cid, Path(target))
    done = time.monotonic()
    await store.unpin(cid, Pin("local", "soak"))
    await store.close()
    print(json.dumps({"cid": str(cid), "size": size, "before": before, "peak": memory("VmHWM"),
                      "in_s": round(between - started, 2), "out_s": round(done - between, 2)}))

asyncio.run(main(*sys.argv[1:]))
"""


def make(path: Path, size: int) -> None:
    """Write a file whose chunks all differ, most of it holes: the test's time goes into the stores."""
    with path.open("wb") as file:
        for start in range(0, size, 262_144):
            file.seek(start)
            file.write(start.to_bytes(8, "little"))
        file.truncate(size)


@pytest.mark.parametrize("kind", ["embedded", "kubo"])
def test_a_large_file_takes_constant_memory(request: pytest.FixtureRequest, tmp_path: Path, kind: str) -> None:
    place = request.getfixturevalue("kubo_address") if kind == "kubo" else str(tmp_path / "store")
    source, target = tmp_path / "source", tmp_path / "target"
    make(source, SIZE)
    command = [sys.executable, "-c", MOVER, place, str(source), str(target)]
    report = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    print(f"{kind}: {report}")
    assert report["size"] == SIZE
    assert report["peak"] <= MOST
    assert report["peak"] - report["before"] <= GROWTH
    assert subprocess.run(["cmp", str(source), str(target)], check=False).returncode == 0
