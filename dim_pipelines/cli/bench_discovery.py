"""`dim bench discovery`: what it costs to know a thousand nodes, and how soon a new one is used.

Parts that need nothing but this process come first; the last ones run a network of their own on this machine.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from dim_pipelines.cli.bench import LAYERS, Figure, warn_if_noisy
from dim_pipelines.cli.bench_load import LoadMeter
from dim_pipelines.cli.console import DebugFlag, Exit, JsonFlag, Screen
from dim_pipelines.errors import ConfigurationError

VERIFIED_GOAL: Final = 2_000.0
"""Records a second that one core verifies, reads and judges."""
TICK_GOAL_S: Final = 1.0
"""The sensor's look at the whole table."""
SCHEDULABLE_GOAL_S: Final = 2.0
"""From the daemon's first answer until work may go to it, with hints; median."""
PAGE_GOAL_S: Final = 10.0
"""The same until Dagster's page shows it."""
IPNS_GOAL_S: Final = 75.0
"""The same until work may go to it, with IPNS alone."""
ATTACHED_GOAL: Final = 0.95
"""Throughput of the encoder's pipeline on a node that only dials out, as a share of a direct one's."""
RANKING_GOAL_S: Final = 0.020
"""Feasibility and rank of all nodes for a batch."""

Part = Callable[[int, int, Screen], tuple[dict[str, Any], list[Figure]]]
"""Measures with (nodes, rounds) and gives what `--json` shows and the figures that have goals."""


def discovery(
    parts: Annotated[
        str | None,
        typer.Option("--parts", metavar="A,B", help="Only these of: records, table, blocks, links, reach, joining."),
    ] = None,
    nodes: Annotated[int, typer.Option("--nodes", min=10, help="Nodes that exist on paper.")] = 1000,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Times each is measured; the median is taken.")] = 5,
    as_json: JsonFlag = False,
    debug: DebugFlag = False,
) -> int:
    """Measure records a second, ranking, the tick of the sensor, what TLS and tunnels cost, and how long joining takes.

    It works in homes of its own and removes them.
    """
    screen = Screen(as_json, debug)
    chosen = [part.strip() for part in parts.split(",")] if parts else list(PARTS)
    for part in chosen:
        if part not in PARTS:
            raise ConfigurationError(f"no part is called {part!r}", hint=f"--parts {','.join(PARTS)}")
    record: dict[str, Any] = {"nodes": nodes, "rounds": rounds}
    figures: list[Figure] = []
    for part in chosen:
        screen.say(f"measuring {part}")
        meter = LoadMeter()
        shown, found = PARTS[part](nodes, rounds, screen)
        others = round(meter.look().others, 3)
        record[part] = {**shown, "others": others}
        for figure in found:
            screen.say(figure.line())
        warn_if_noisy(others, screen)
        figures += found
    record["goals"] = {figure.name: {"goal": figure.goal, "reached": figure.reached} for figure in figures}
    screen.result(record, "\n".join(figure.line() for figure in figures))
    return Exit.DONE


def _records(nodes: int, rounds: int, screen: Screen) -> tuple[dict[str, Any], list[Figure]]:
    from dim_pipelines.cli.bench_records import verified_per_s

    rate = verified_per_s(nodes, rounds)
    return {"verified_per_s": round(rate, 1)}, [Figure("records verified a second by one core", rate, VERIFIED_GOAL)]


def _table(nodes: int, rounds: int, screen: Screen) -> tuple[dict[str, Any], list[Figure]]:
    from dim_pipelines.cli.bench_pool import measure_looks

    looked = measure_looks(nodes, rounds)
    figures = [
        Figure(f"the sensor's look at {nodes:,} new nodes, s", looked.tick_s, TICK_GOAL_S, at_most=True),
        Figure("the same when nothing has changed, s", looked.idle_tick_s, TICK_GOAL_S, at_most=True),
        Figure(f"full ranking of {nodes:,} nodes, s", looked.ranking_s, RANKING_GOAL_S, at_most=True),
    ]
    record = {
        "tick_s": round(looked.tick_s, 4),
        "idle_tick_s": round(looked.idle_tick_s, 4),
        "ranking_s": round(looked.ranking_s, 5),
    }
    return record, figures


def _blocks(nodes: int, rounds: int, screen: Screen) -> tuple[dict[str, Any], list[Figure]]:
    from dim_pipelines.cli.bench_blocks import measure_blocks

    plain, secure = asyncio.run(measure_blocks(rounds))
    ratio = secure.megabytes_per_s / plain.megabytes_per_s
    screen.say(
        f"BlockService there and back: plaintext {plain.megabytes_per_s:.0f} MB/s, TLS {secure.megabytes_per_s:.0f} "
        f"MB/s ({ratio:.2f}); a task's 64 KiB in and out: {plain.cpu_ms_per_task:.2f} and "
        f"{secure.cpu_ms_per_task:.2f} ms of processor time"
    )
    record = {
        "plaintext_mb_per_s": round(plain.megabytes_per_s, 1),
        "tls_mb_per_s": round(secure.megabytes_per_s, 1),
        "ratio": round(ratio, 3),
        "plaintext_cpu_ms_per_task": round(plain.cpu_ms_per_task, 3),
        "tls_cpu_ms_per_task": round(secure.cpu_ms_per_task, 3),
    }
    return record, []


def _links(nodes: int, rounds: int, screen: Screen) -> tuple[dict[str, Any], list[Figure]]:
    from dim_pipelines.cli.bench_links import measure_links

    speeds = asyncio.run(measure_links())
    screen.say(
        f"raw bytes: direct {speeds.direct:.0f} MB/s, through an orchestrator {speeds.attached:.0f} MB/s; a small call "
        f"{1000 * speeds.direct_call_s:.1f} and {1000 * speeds.attached_call_s:.1f} ms"
    )
    record = {
        "direct_mb_per_s": round(speeds.direct, 1),
        "attached_mb_per_s": round(speeds.attached, 1),
        "direct_call_ms": round(1000 * speeds.direct_call_s, 3),
        "attached_call_ms": round(1000 * speeds.attached_call_s, 3),
    }
    return record, []


def _reach(nodes: int, rounds: int, screen: Screen) -> tuple[dict[str, Any], list[Figure]]:
    from dim_pipelines.cli.bench_reach import measure_reach

    with tempfile.TemporaryDirectory(prefix="dim-bench-") as scratch:
        reached = asyncio.run(measure_reach(Path(scratch), rounds, LAYERS, screen))
    ratio = reached.direct_s / reached.attached_s
    record = {
        "direct_s": round(reached.direct_s, 3),
        "attached_s": round(reached.attached_s, 3),
        "ratio": round(ratio, 4),
    }
    return record, [Figure("throughput of a pipeline, attached / direct", ratio, ATTACHED_GOAL)]


def _joining(nodes: int, rounds: int, screen: Screen) -> tuple[dict[str, Any], list[Figure]]:
    from dim_pipelines.cli.bench_joining import measure_joining

    with tempfile.TemporaryDirectory(prefix="dim-bench-") as scratch:
        found = asyncio.run(measure_joining(Path(scratch), rounds, screen))
    record: dict[str, Any] = {}
    for way, joined in found.items():
        for name, values in asdict(joined).items():
            record[f"{way}_{name}"] = _spread(values)
            screen.say(f"{way} {name}: {_shown(record[f'{way}_{name}'])}")
    hints, ipns = found["hints"], found["ipns"]
    median = statistics.median
    figures = [
        Figure("with hints: serving to schedulable, s", median(hints.schedulable_s), SCHEDULABLE_GOAL_S, at_most=True),
        Figure("with hints: serving to Dagster's page, s", median(hints.page_s), PAGE_GOAL_S, at_most=True),
        Figure("IPNS alone: serving to schedulable, s", median(ipns.schedulable_s), IPNS_GOAL_S, at_most=True),
    ]
    return record, figures


def _spread(values: Sequence[float]) -> dict[str, Any]:
    """Give a distribution: every value in order, and least, median and most."""
    ordered = sorted(values)
    return {
        "all": [round(value, 3) for value in ordered],
        "min": round(ordered[0], 3),
        "median": round(statistics.median(ordered), 3),
        "max": round(ordered[-1], 3),
    }


def _shown(spread: dict[str, Any]) -> str:
    every = " ".join(f"{value:.2f}" for value in spread["all"])
    return f"{every} s; median {spread['median']:.2f} s"


PARTS: Final[dict[str, Part]] = {
    "records": _records,
    "table": _table,
    "blocks": _blocks,
    "links": _links,
    "reach": _reach,
    "joining": _joining,
}
"""What can be measured, in this order."""
