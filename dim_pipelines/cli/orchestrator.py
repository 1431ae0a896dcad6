"""`dim orchestrator`: the network's meeting point, and which there are."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dim_pipelines.cli.console import DebugFlag, Exit, JsonFlag, Screen
from dim_pipelines.cli.local import IpfsOption, ipfs_address

if TYPE_CHECKING:
    from dim_pipelines.identity.membership import Orchestrator
    from dim_pipelines.orchestrator.daemon import OrchestratorAddress, OrchestratorConfig

app = typer.Typer(help="The network's meeting point: who is there, who gets in.", no_args_is_help=True)

ListenOption = Annotated[
    str,
    typer.Option("--listen", metavar="HOST:PORT", help="For members. Port 0: the one it had before, else a free one."),
]
DoorOption = Annotated[
    str, typer.Option("--door", metavar="HOST:PORT", help="For those who join, likewise; they show an invite there.")
]
AdvertiseOption = Annotated[
    list[str] | None,
    typer.Option(
        "--advertise", metavar="HOST[:PORT]", help="Where others find it, when that is not --listen; may be repeated."
    ),
]


@app.command("start")
def start(
    listen: ListenOption = "127.0.0.1:0",
    door: DoorOption = "127.0.0.1:0",
    advertise: AdvertiseOption = None,
    ipfs: IpfsOption = "",
    metrics_port: Annotated[
        int, typer.Option("--metrics-port", min=0, max=65535, help="Port of /metrics on 127.0.0.1; 0: a free one.")
    ] = 0,
    home: Annotated[
        Path | None, typer.Option("--home", metavar="DIR", help="The DIM_HOME; $DIM_HOME when left out.")
    ] = None,
    as_json: JsonFlag = False,
    debug: DebugFlag = False,
) -> int:
    """Run an orchestrator here until Ctrl-C or SIGTERM; a second signal ends it at once.

    The home has to be in a network as an orchestrator: `dim network init`, or an invite with --role orchestrator.
    With --json it prints one object as soon as it serves.
    """
    from dim_pipelines.orchestrator.daemon import OrchestratorConfig
    from dim_pipelines.settings import Home

    config = OrchestratorConfig(
        Home.at(home), listen, door, ipfs, advertise=tuple(advertise or ()), metrics_port=metrics_port
    )
    asyncio.run(_serve(Screen(as_json, debug), config))
    return Exit.DONE


async def _serve(screen: Screen, config: OrchestratorConfig) -> None:
    from dataclasses import asdict, replace

    from dim_pipelines.orchestrator.daemon import serve
    from dim_pipelines.telemetry.logging import set_up

    set_up()

    def ready(address: OrchestratorAddress) -> None:
        lines = [f"orchestrator {address.name}", f"members at   {address.address}", f"door at      {address.door}"]
        lines += [f"metrics at   {address.metrics}"] if address.metrics else []
        screen.result(asdict(address), "\n".join(lines))
        sys.stdout.flush()

    async with ipfs_address(config.home, config.ipfs, heard=config.listen) as ipfs:
        await serve(replace(config, ipfs=ipfs), ready=ready)


@app.command("list")
def list_orchestrators(
    home: Annotated[
        Path | None, typer.Option("--home", metavar="DIR", help="The DIM_HOME; $DIM_HOME when left out.")
    ] = None,
    as_json: JsonFlag = False,
    debug: DebugFlag = False,
) -> int:
    """Show the orchestrators of this home's network, and which of them answer."""
    from dim_pipelines.errors import ConfigurationError
    from dim_pipelines.identity.membership import Membership
    from dim_pipelines.settings import Home

    screen = Screen(as_json, debug)
    membership = Membership.load(Home.at(home))
    if membership is None:
        raise ConfigurationError("this home is in no network", hint="dim network init, or dim network join INVITE")
    known = membership.orchestrators()
    answers = asyncio.run(_ask_all(known))
    records: list[dict[str, Any]] = [
        {
            "name": each.name,
            "label": each.label,
            "addresses": list(each.addresses),
            "doors": list(each.doors),
            "answer": answer,
        }
        for each, answer in zip(known, answers, strict=True)
    ]
    rows = [[each["label"], " ".join(each["addresses"]), each["answer"], each["name"]] for each in records]
    screen.table(["LABEL", "ADDRESSES", "ANSWER", "NAME"], rows, {"orchestrators": records})
    return Exit.DONE


async def _ask_all(known: list[Orchestrator]) -> list[str]:
    from dim_pipelines.errors import DimError
    from dim_pipelines.wire.tls import certificate_hash, fetch_certificate

    async def ask(one: Orchestrator) -> str:
        why = "no address"
        for address in one.addresses:
            try:
                await fetch_certificate(address, certificate_hash(one.certificate))
                return "yes"
            except DimError as error:
                why = error.message
        return why

    return list(await asyncio.gather(*(ask(each) for each in known)))
