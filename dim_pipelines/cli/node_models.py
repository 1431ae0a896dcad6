"""Models on the node of this home: made ready ahead of work, and measured."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dim_pipelines.cli.console import DebugFlag, Exit, JsonFlag, Screen
from dim_pipelines.cli.local import OWNER, IpfsOption, content_store
from dim_pipelines.cli.node_owner import HomeOption, running_node
from dim_pipelines.errors import ConfigurationError

if TYPE_CHECKING:
    from dim_pipelines.domain.advertisement import Speed
    from dim_pipelines.domain.cid import Cid
    from dim_pipelines.settings import Home

_Model = Annotated[str, typer.Argument(help="CID, NAME or NAME@VERSION of a model.", metavar="MODEL")]
_Models = Annotated[
    list[str] | None,
    typer.Argument(help="CIDs or names; all on the node's disk when left out.", metavar="MODEL"),
]


def warm(
    model: _Model,
    batch_rows: Annotated[int, typer.Option("--batch-rows", min=1, help="Rows of a micro-batch.")] = 64,
    ipfs: IpfsOption = "",
    home: HomeOption = None,
    as_json: JsonFlag = False,
    debug: DebugFlag = False,
) -> int:
    """Bring a model to the node's disk and devices ahead of its first task."""
    from dim_pipelines.settings import Home

    screen = Screen(as_json, debug)
    cid = asyncio.run(_warm(Home.at(home), model, batch_rows, ipfs, screen))
    screen.result({"model": str(cid)}, f"{cid} is ready")
    return Exit.DONE


def benchmark(
    models: _Models = None,
    seconds: Annotated[int, typer.Option("--seconds", min=1, max=60, help="How long on each device.")] = 5,
    batch_rows: Annotated[int, typer.Option("--batch-rows", min=0, help="Rows of a micro-batch; 0: 64.")] = 0,
    ipfs: IpfsOption = "",
    home: HomeOption = None,
    as_json: JsonFlag = False,
    debug: DebugFlag = False,
) -> int:
    """Measure how many rows a second models compute here, with the confidence of it; the node advertises the results.

    Micro-batches of zeros are timed in the engine, one device at a time. Work that goes on meanwhile slows it down.
    """
    from dim_pipelines.settings import Home

    screen = Screen(as_json, debug)
    speeds = asyncio.run(_benchmark(Home.at(home), models or [], seconds, batch_rows, ipfs, screen))
    rows = [
        (f"{each.rows_per_1000_s / 1000:,.1f}", f"± {each.spread_per_mille / 10:.1f} %", each.samples, each.model)
        for each in speeds
    ]
    screen.table(("rows/s", "95 %", "samples", "model"), rows, {"speeds": [_plain(each) for each in speeds]})
    return Exit.DONE


async def _warm(home: Home, model: str, batch_rows: int, ipfs: str, screen: Screen) -> Cid:
    from dim_pipelines.wire.v1 import node_pb2

    cid, signatures = await _find(home, model, ipfs)
    async with running_node(home) as node:
        request = node_pb2.WarmModelRequest(model=cid, signatures=signatures, batch_rows=batch_rows)
        stage = ""
        async for progress in node.WarmModel(request):
            if progress.stage != stage:
                stage = progress.stage
                screen.say(stage)
    return cid


async def _benchmark(
    home: Home, models: Sequence[str], seconds: int, batch_rows: int, ipfs: str, screen: Screen
) -> list[Speed]:
    from dim_pipelines.domain.cid import Cid
    from dim_pipelines.wire.codec import speed_from_wire
    from dim_pipelines.wire.v1 import node_pb2

    async with running_node(home) as node:
        found: list[tuple[Cid, Sequence[Cid]]] = [await _find(home, model, ipfs) for model in models]
        if not models:
            said = await node.DescribeNode(node_pb2.DescribeNodeRequest())
            found = [(Cid(raw), ()) for raw in said.models]
        if not found:
            raise ConfigurationError("the node has no model on its disk", hint="dim node benchmark MODEL")
        speeds: list[Speed] = []
        for cid, signatures in found:
            screen.say(f"measuring {cid}")
            request = node_pb2.BenchmarkModelRequest(
                model=cid, signatures=signatures, batch_rows=batch_rows, seconds=seconds
            )
            async for progress in node.BenchmarkModel(request):
                if progress.stage == "done":
                    speeds.append(speed_from_wire(progress.speed))
        return speeds


async def _find(home: Home, reference: str, ipfs: str) -> tuple[Cid, Sequence[Cid]]:
    """Give a model's CID and its signatures; a CID that is none of this home's models stands for itself.

    Raises:
        ConfigurationError: there is no such model here.
    """
    from dim_pipelines.content.models import find_model
    from dim_pipelines.domain.cid import Cid, looks_like_cid
    from dim_pipelines.errors import AccessError, ContentError, InputError

    async with content_store(home, ipfs) as store:
        try:
            package = await find_model(reference, store, OWNER)
        except (AccessError, ContentError, InputError):
            if not looks_like_cid(reference):
                raise
            return Cid.parse(reference), ()
    return package.cid, package.signatures


def _plain(speed: Speed) -> dict[str, Any]:
    return {
        "model": str(speed.model),
        "numerics": speed.numerics,
        "rows_per_s": speed.rows_per_1000_s / 1000,
        "spread_percent": speed.spread_per_mille / 10,
        "samples": speed.samples,
    }
