"""`dim gc`: drop what no pin holds."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated

import typer

from dim_pipelines.cli.console import DebugFlag, Exit, JsonFlag, Screen
from dim_pipelines.cli.local import IpfsOption


def gc(
    ipfs: IpfsOption = "",
    grace: Annotated[
        float, typer.Option("--grace", min=0.0, help="Keep unpinned blocks younger than this, in seconds.")
    ] = 3600.0,
    as_json: JsonFlag = False,
    debug: DebugFlag = False,
) -> int:
    """Drop blocks that no pin with an owner and a lifetime holds."""
    screen = Screen(as_json, debug)
    blocks, size = asyncio.run(_collect(ipfs, grace))
    text = f"dropped {blocks:,} blocks, {size / 1e6:,.1f} MB" if blocks else "nothing to drop"
    screen.result({"blocks": blocks, "bytes": size}, text)
    return Exit.DONE


async def _collect(ipfs: str, grace: float) -> tuple[int, int]:
    from dim_pipelines.cli.local import content_store
    from dim_pipelines.settings import Home

    async with content_store(Home.at(), ipfs) as store:
        dropped = await store.collect(int(time.time() * 1000), grace)
    return dropped.blocks, dropped.bytes
