"""A million shards go through manifest and journal in bounded memory, whatever store holds them.

`make soak` takes a million everywhere; otherwise the journals are shorter, and the bound is the same.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from dim_pipelines.content.kubo_daemon import KuboDaemon

PROCESS = Path(__file__).with_name("million_shards.py")
MAX_MIB = 300.0
JOURNALLED = 1_000_000 if os.environ.get("DIM_SOAK") else 100_000
MANIFEST = "bafyreidt3flhzfmicpv2qoad32tfbcn2r3f53xwttvtiauj4z5kdknw5dq"


async def measured(*arguments: str) -> dict[str, Any]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(PROCESS), *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, error = await process.communicate()
    assert process.returncode == 0, error.decode()
    done: dict[str, Any] = json.loads(out)
    print(done)
    return done


async def check_both(kind: str, manifest_at: str, journal_at: str, journal_shards: int) -> None:
    # side by side, because each keeps one core busy
    manifest, journal = await asyncio.gather(
        measured("manifest", kind, manifest_at, "1000000"),
        measured("journal", kind, journal_at, str(journal_shards)),
    )
    assert (manifest["read"], manifest["pages"], manifest["root"]) == (1_000_000, 84, MANIFEST)
    assert manifest["peak_mib"] < MAX_MIB
    assert (journal["read"], journal["pages"]) == (journal_shards, journal_shards // 1000)
    assert journal["peak_mib"] < MAX_MIB


@pytest.mark.timeout(1500)
async def test_a_million_shards_in_an_embedded_store(tmp_path: Path) -> None:
    await check_both("embedded", str(tmp_path / "manifest"), str(tmp_path / "journal"), JOURNALLED)


@pytest.mark.timeout(1500)
async def test_a_million_shards_in_a_real_kubo(
    tmp_path: Path, ipfs_binary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon = await KuboDaemon.start(tmp_path / "repository", ipfs_binary)
    monkeypatch.setenv("DIM_KUBO_SECRET", daemon.secret)
    try:
        await check_both("kubo", daemon.address, daemon.address, JOURNALLED)
    finally:
        await daemon.stop()
