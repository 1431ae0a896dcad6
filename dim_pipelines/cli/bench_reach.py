"""A whole batch on a node that others connect to, and on one that only dials out: what the relay costs a pipeline.

Two networks on this machine, each of an orchestrator and one node; the node of the second advertises an address that
nobody reaches, so it attaches. Both run the same encoder over the same rows, in turns.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from dim_pipelines.cli.bench import Bench, RawLoop, write_table
from dim_pipelines.cli.bench_joining import run_dim, running
from dim_pipelines.errors import NodeUnreachable

if TYPE_CHECKING:
    from dim_pipelines.cli.console import Screen

ROWS: Final = 768
BATCH_ROWS: Final = 32
_NOBODY: Final = "127.0.0.1:9"
"""An address that nobody listens at (the discard port, RFC 863)."""
_READY_S: Final = 90.0


@dataclass(frozen=True, slots=True)
class Reached:
    """Seconds of the same batch (medians)."""

    direct_s: float
    attached_s: float


@dataclass(frozen=True, slots=True)
class _Network:
    """The nodes of a network, in the place of one node's address."""

    address: str = "network"


async def measure_reach(folder: Path, rounds: int, layers: int, screen: Screen) -> Reached:
    """Measure both in turns.

    Raises:
        NodeUnreachable: a daemon did not start, or its node was not found.
    """
    from dim_pipelines.cli.bench_encoder import token_table

    source = write_table(folder / "rows.parquet", token_table(ROWS))
    screen.say("exporting the encoder")
    model = folder / "model"
    async with RawLoop.start(model, BATCH_ROWS, layers):
        pass  # its process has written the package, and torch stays out of this one
    taken: dict[str, list[float]] = {"direct": [], "attached": []}
    async with AsyncExitStack() as stack:
        benches = {reach: await stack.enter_async_context(_bench(folder / reach, reach)) for reach in taken}
        cids = {reach: await bench.add_model(model) for reach, bench in benches.items()}
        for number in range(rounds + 1):
            for reach, bench in benches.items():
                begun = time.perf_counter()
                await bench.run(cids[reach], source, BATCH_ROWS, BATCH_ROWS)
                seconds = time.perf_counter() - begun
                screen.say(f"{reach} {number}/{rounds}: {seconds:.2f} s{'' if number else ' (warming)'}")
                if number:
                    taken[reach].append(seconds)
    return Reached(statistics.median(taken["direct"]), statistics.median(taken["attached"]))


@asynccontextmanager
async def _bench(root: Path, reach: str) -> AsyncIterator[Bench]:
    """Found a network, let one node join it, and wait until work may go to it."""
    from dim_pipelines.content.embedded import EmbeddedContentStore
    from dim_pipelines.database.engine import open_database
    from dim_pipelines.discovery.node_table import NodeTable
    from dim_pipelines.orchestrator.batches import Batches
    from dim_pipelines.settings import Home

    home, theirs = Home.at(root / "hub"), root / "node"
    await run_dim(home.root, "network", "init")
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(running(home.root, "dim_pipelines.cli", "orchestrator", "start", "--json"))
        invite = (await run_dim(home.root, "network", "invite"))["invite"]
        await run_dim(theirs, "network", "join", invite, "--label", reach)
        node = ("dim_pipelines.node", "--name", reach, "--engine", "torch")
        more = ("--advertise", _NOBODY) if reach == "attached" else ()
        await stack.enter_async_context(running(theirs, *node, *more))
        database = open_database(home.database_url)
        stack.callback(database.close)
        table = NodeTable(database)
        deadline = time.monotonic() + _READY_S
        while not any(row.state == "ELIGIBLE" and row.reach == reach for row in table.rows()):
            if time.monotonic() > deadline:
                raise NodeUnreachable(f"no node is {reach} within {_READY_S:.0f} s: {table.rows()}")
            await asyncio.sleep(0.1)
        store: Any = await EmbeddedContentStore.open(home.store)
        stack.push_async_callback(store.close)
        yield Bench(home, store, "embedded", Batches(database), database, _Network())
