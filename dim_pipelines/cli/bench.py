"""`dim bench`: how much of a raw loop's speed a batch keeps, and what dispatch costs.

Each benchmark works in a home of its own and removes it. Both sides of a comparison take turns, medians are
taken, and what others used of the machine meanwhile is printed beside them: a goal that was missed is said so.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from dim_pipelines.cli.bench_load import Load, LoadMeter
from dim_pipelines.cli.console import DebugFlag, Exit, JsonFlag, Screen
from dim_pipelines.errors import ConfigurationError, EngineFailed

if TYPE_CHECKING:
    import pyarrow as pa

    from dim_pipelines.cli.here import Done

app = typer.Typer(help="Measure DIM on this machine.", no_args_is_help=True)

PIPELINE_GOAL: Final = 0.90
"""Whole pipeline, warm, as a share of the raw loop's speed."""
DESCRIPTORS_GOAL: Final = 10_000.0
"""Tasks per second through the work stream, without data."""
ECHO_GOAL: Final = 800.0
"""Tasks per second of a whole batch on the embedded store whose model does nothing."""
QUIET: Final = 0.15
"""Share of the machine that others may use before a figure is called noisy."""

LAYERS: Final = 6
_BATCH_ROWS: Final = 32
"""Rows of a shard and of a micro-batch of the encoder."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A measured value beside its goal; `at_most`: less is better."""

    name: str
    value: float
    goal: float
    at_most: bool = False

    @property
    def reached(self) -> bool:
        """Whether the goal was reached."""
        return self.value <= self.goal if self.at_most else self.value >= self.goal

    def line(self) -> str:
        """Say it in a line."""
        shown = f"{self.value:.3f}" if self.value < 10 else f"{self.value:,.0f}"
        goal = f"{self.goal:.2f}" if self.goal < 10 else f"{self.goal:,.0f}"
        side = "at most " if self.at_most else ""
        return f"{self.name}: {shown} (goal {side}{goal}: {'reached' if self.reached else 'MISSED'})"


class Bench:
    """A store, one node and a table of batches in a home of their own, kept warm between runs."""

    def __init__(self, home: Any, store: Any, ipfs: str, batches: Any, database: Any, node: Any) -> None:
        self.home = home
        self.store = store
        self.ipfs = ipfs
        self.batches = batches
        self.database = database
        self.node = node
        self._number = 0

    @classmethod
    @asynccontextmanager
    async def start(cls, root: Path, ipfs: str) -> AsyncIterator[Bench]:
        """Start everything that a batch needs, and stop it at the end."""
        from dim_pipelines.cli.local import content_store, ipfs_address, local_nodes
        from dim_pipelines.database.engine import open_database
        from dim_pipelines.orchestrator.batches import Batches
        from dim_pipelines.settings import Home

        home = Home.at(root)
        async with AsyncExitStack() as stack:
            address = await stack.enter_async_context(ipfs_address(home, ipfs))
            store = await stack.enter_async_context(content_store(home, address))
            database = await asyncio.to_thread(open_database, home.database_url)
            (node,) = await stack.enter_async_context(local_nodes(home, 1, address, prefix="bench"))
            yield cls(home, store, address, Batches(database), database, node)

    async def add_model(self, folder: Path) -> str:
        """Publish a model package and give its CID."""
        from dim_pipelines.cli.local import OWNER
        from dim_pipelines.content.models import add_model
        from dim_pipelines.identity.keys import load_or_create_key

        package = await add_model(folder, self.store, load_or_create_key(self.home.user_key), OWNER)
        return str(package.cid)

    async def run(self, model: str, source: Path, shard_rows: int, batch_rows: int) -> Done:
        """Run a batch from its submission to the joined table, as `dim infer` does."""
        from dim_pipelines.cli.here import run_here
        from dim_pipelines.cli.local import OWNER
        from dim_pipelines.domain.batch import BatchSpec
        from dim_pipelines.orchestrator.batches import submit_batch

        spec = BatchSpec.read(
            {
                "name": "bench",
                "models": [model],
                "input": {"uri": str(source)},
                "shard_rows": shard_rows,
                "batch_rows": batch_rows,
            }
        )
        self._number += 1
        output = self.home.root / f"output-{self._number}.parquet"
        row = await asyncio.to_thread(submit_batch, self.database, spec, owner=OWNER, run=False, output=str(output))
        return await run_here(
            row,
            home=self.home,
            batches=self.batches,
            store=self.store,
            ipfs=self.ipfs,
            nodes=[self.node.address],
            output=output,
            screen=Screen(as_json=True),
        )


class RawLoop:
    """The raw loop in its own process, told when to run."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    @asynccontextmanager
    async def start(cls, folder: Path, rows: int, layers: int) -> AsyncIterator[RawLoop]:
        """Write the model package into `folder`, load its program and warm it; the process is ended with the block."""
        arguments = (str(folder), str(rows), str(_BATCH_ROWS), str(layers))
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "dim_pipelines.cli.bench_encoder", *arguments),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        loop = cls(process)
        try:
            await loop._read()
            yield loop
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()

    async def run(self) -> float:
        """Run over all rows once and give the seconds it took."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"run\n")
        await self._process.stdin.drain()
        return float((await self._read()).split()[0])

    async def _read(self) -> str:
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        if not line:
            raise EngineFailed("the raw loop's process ended", hint="what it wrote stands above")
        return line.decode("ascii")


def write_table(path: Path, table: pa.Table) -> Path:
    """Write a table as Parquet and give its path."""
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return path


@app.command("pipeline")
def pipeline(
    rows: Annotated[int, typer.Option("--rows", min=_BATCH_ROWS, help="Rows of a run.")] = 768,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Runs of each side; the median is taken.")] = 5,
    layers: Annotated[int, typer.Option("--layers", min=1, help="Layers of the encoder; MiniLM has 6.")] = LAYERS,
    ipfs: Annotated[
        str, typer.Option("--ipfs", metavar="A,B", help="The stores to measure: embedded, kubo.")
    ] = "embedded,kubo",
    as_json: JsonFlag = False,
    debug: DebugFlag = False,
) -> int:
    """Compare a whole batch (read, shard, dispatch, compute, journal, join) with a raw loop over the same model.

    An encoder of MiniLM's shape, one model thread, 32 rows per shard; everything warm; both sides take turns.
    """
    screen = Screen(as_json, debug)
    kinds = [kind.strip() for kind in ipfs.split(",") if kind.strip()]
    if not kinds:
        raise ConfigurationError("--ipfs names no store", hint="--ipfs embedded,kubo")
    results = asyncio.run(_pipeline(kinds, rows, rounds, layers, screen))
    figures = [
        Figure(f"pipeline / raw loop, {kind}", result["ratio"], PIPELINE_GOAL) for kind, result in results.items()
    ]
    record = {"rows": rows, "rounds": rounds, "layers": layers, "goal": PIPELINE_GOAL, "stores": results}
    screen.result(record, "\n".join(figure.line() for figure in figures))
    return Exit.DONE


async def _pipeline(
    kinds: Sequence[str], rows: int, rounds: int, layers: int, screen: Screen
) -> dict[str, dict[str, Any]]:
    from dim_pipelines.cli.bench_encoder import token_table

    with tempfile.TemporaryDirectory(prefix="dim-bench-") as scratch:
        folder = Path(scratch)
        source = write_table(folder / "rows.parquet", token_table(rows))
        screen.say("exporting the encoder")
        async with RawLoop.start(folder / "model", rows, layers) as raw:
            return {
                kind: await _compare(kind, folder / f"home-{kind}", folder / "model", source, raw, rows, rounds, screen)
                for kind in kinds
            }


async def _compare(
    kind: str, root: Path, model: Path, source: Path, raw: RawLoop, rows: int, rounds: int, screen: Screen
) -> dict[str, Any]:
    async with Bench.start(root, kind) as bench:
        cid = await bench.add_model(model)
        screen.say(f"{kind}: warming")
        await bench.run(cid, source, _BATCH_ROWS, _BATCH_ROWS)
        meter = LoadMeter()
        raw_loads: list[Load] = []
        loads: list[Load] = []
        raw_s: list[float] = []
        computing_s: list[float] = []
        for number in range(1, rounds + 1):
            meter.look()
            raw_s.append(await raw.run())
            raw_loads.append(meter.look())
            done = await bench.run(cid, source, _BATCH_ROWS, _BATCH_ROWS)
            loads.append(meter.look())
            computing_s.append(done.finished.seconds)
            screen.say(
                f"{kind} {number}/{rounds}: raw {raw_s[-1]:.2f} s (others {raw_loads[-1].others:.0%}), "
                f"pipeline {loads[-1].seconds:.2f} s (others {loads[-1].others:.0%}), "
                f"of it dispatch {computing_s[-1]:.2f} s"
            )
    raw_median = statistics.median(raw_s)
    whole = statistics.median(load.seconds for load in loads)
    others = statistics.median([load.others for load in (*loads, *raw_loads)])
    raw_cpu_s = statistics.median(load.own_cpu_s for load in raw_loads)
    cpu_s = statistics.median(load.own_cpu_s for load in loads)
    result = {
        "ratio": round(raw_median / whole, 4),
        "ratio_of_dispatch": round(raw_median / statistics.median(computing_s), 4),
        "raw_s": round(raw_median, 3),
        "pipeline_s": round(whole, 3),
        "dispatch_s": round(statistics.median(computing_s), 3),
        "raw_rows_per_s": round(rows / raw_median, 1),
        "pipeline_rows_per_s": round(rows / whole, 1),
        "raw_cpu_s_per_1k_rows": round(1000 * raw_cpu_s / rows, 2),
        "pipeline_cpu_s_per_1k_rows": round(1000 * cpu_s / rows, 2),
        "ratio_of_processor_time": round(raw_cpu_s / cpu_s, 4),
        "others": round(others, 3),
    }
    _explain(result, screen)
    return result


def _explain(result: dict[str, Any], screen: Screen) -> None:
    """Say where the time went; a person who reads a missed goal wants to know why."""
    whole, dispatch, raw = result["pipeline_s"], result["dispatch_s"], result["raw_s"]
    screen.say(
        f"  raw {result['raw_rows_per_s']} rows/s, pipeline {result['pipeline_rows_per_s']} rows/s; beside the raw "
        f"{raw:.2f} s: dispatch {dispatch - raw:+.2f} s, reading and joining {whole - dispatch:+.2f} s; processor "
        f"seconds per 1,000 rows {result['raw_cpu_s_per_1k_rows']} and {result['pipeline_cpu_s_per_1k_rows']}: "
        f"{result['ratio_of_processor_time']:.3f}"
    )
    warn_if_noisy(result["others"], screen)


def warn_if_noisy(others: float, screen: Screen) -> None:
    """Warn where others used so much of the machine that the figures say little."""
    if others > QUIET:
        screen.warn(f"others used {others:.0%} of the machine meanwhile: the figures are noisy")


@app.command("dispatch")
def dispatch(
    tasks: Annotated[int, typer.Option("--tasks", min=100, help="Tasks of an echo run.")] = 4000,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Runs of each; the median is taken.")] = 5,
    as_json: JsonFlag = False,
    debug: DebugFlag = False,
) -> int:
    """Count tasks per second: descriptors only, and whole batches of a model that does nothing.

    Descriptors: the work stream between two processes, no data. Echo: one row per shard on the embedded store, each
    read, hashed, sent, returned, verified, stored, pinned and journalled.
    """
    screen = Screen(as_json, debug)
    with tempfile.TemporaryDirectory(prefix="dim-bench-") as scratch:
        descriptors, descriptors_others = asyncio.run(_descriptors(Path(scratch), rounds))
        screen.say(Figure("descriptors, tasks/s", descriptors, DESCRIPTORS_GOAL).line())
        echo, echo_others = asyncio.run(_echo(Path(scratch), tasks, rounds, screen))
    figures = [
        Figure("descriptors, tasks/s", descriptors, DESCRIPTORS_GOAL),
        Figure("echo, embedded store, tasks/s", echo, ECHO_GOAL),
    ]
    others = max(descriptors_others, echo_others)
    record = {
        "descriptors_per_s": round(descriptors, 1),
        "descriptors_goal": DESCRIPTORS_GOAL,
        "echo_per_s": round(echo, 1),
        "echo_goal": ECHO_GOAL,
        "tasks": tasks,
        "rounds": rounds,
        "others": round(others, 3),
    }
    warn_if_noisy(others, screen)
    screen.result(record, "\n".join(figure.line() for figure in figures))
    return Exit.DONE


async def _descriptors(scratch: Path, rounds: int) -> tuple[float, float]:
    from dim_pipelines.cli.bench_stream import measure_stream

    meter = LoadMeter()
    rates = [await measure_stream(scratch / f"stream-{number}.sock") for number in range(rounds)]
    return statistics.median(rates), meter.look().others


async def _echo(scratch: Path, tasks: int, rounds: int, screen: Screen) -> tuple[float, float]:
    import numpy as np
    import pyarrow as pa

    from dim_pipelines.domain.model import DESCRIPTION_FILE, ModelDescription

    description = ModelDescription.model_validate(
        {
            "name": "bench-echo",
            "version": "1",
            "engine": "echo",
            "inputs": [{"name": "x", "datatype": "INT64", "shape": []}],
            "licence": "Apache-2.0",
        }
    )
    model = scratch / "echo"
    model.mkdir()
    (model / DESCRIPTION_FILE).write_bytes(description.to_json())
    source = write_table(scratch / "echo.parquet", pa.table({"x": np.arange(tasks, dtype=np.int64)}))
    async with Bench.start(scratch / "home-echo", "embedded") as bench:
        cid = await bench.add_model(model)
        await bench.run(cid, source, max(1, tasks // 100), 1)
        meter = LoadMeter()
        rates = []
        loads = []
        for number in range(1, rounds + 1):
            meter.look()
            done = await bench.run(cid, source, 1, 1)
            loads.append(meter.look())
            rates.append(tasks / done.finished.seconds)
            screen.say(
                f"echo {number}/{rounds}: {rates[-1]:,.0f} tasks/s, "
                f"{1000 * loads[-1].own_cpu_s / tasks:.2f} ms of processor time a task with reading and joining "
                f"(others {loads[-1].others:.0%})"
            )
    return statistics.median(rates), statistics.median(load.others for load in loads)
