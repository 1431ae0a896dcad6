"""`dim kubo`: the private Kubo of this home, in the foreground."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from dim_pipelines.cli.console import DebugFlag, Exit, JsonFlag, Screen

if TYPE_CHECKING:
    from dim_pipelines.settings import Home

app = typer.Typer(help="The private Kubo of this home.", no_args_is_help=True)

_STATUS_S = 5.0


@app.command("start")
def start(
    listen: Annotated[
        list[str] | None,
        typer.Option(
            "--listen",
            metavar="MULTIADDR",
            help="Where other Kubos of the network connect, such as /ip4/100.64.0.3/tcp/4001; may be repeated.",
        ),
    ] = None,
    peer: Annotated[
        list[str] | None,
        typer.Option("--peer", metavar="MULTIADDR", help="Keep a connection to this Kubo; may be repeated."),
    ] = None,
    as_json: JsonFlag = False,
    debug: DebugFlag = False,
) -> int:
    """Run this home's Kubo until Ctrl-C or SIGTERM; where it ends by itself it is started again.

    It is part of the private swarm of the home's network and asks every caller of its RPC for a secret, which the
    other commands of this home find. With --json it prints one object as soon as it answers.
    """
    import asyncio

    from dim_pipelines.settings import Home

    asyncio.run(_run(Screen(as_json, debug), Home.at(), listen, peer or []))
    return Exit.DONE


@app.command("status")
def status(as_json: JsonFlag = False, debug: DebugFlag = False) -> int:
    """Say whether this home's Kubo runs, where, and with how many peers; exit code 1 where none runs."""
    import asyncio

    from dim_pipelines.settings import Home

    screen = Screen(as_json, debug)
    found = asyncio.run(_look(Home.at()))
    lines = [f"RPC    {found['address']}", *(f"swarm  {each}" for each in found["swarm"])]
    lines.append(f"peers  {len(found['peers'])}")
    screen.result(found, "\n".join(lines))
    return Exit.DONE


async def _run(screen: Screen, home: Home, listen: list[str] | None, peers: list[str]) -> None:
    from dim_pipelines.discovery.network_kubo import start_kubo
    from dim_pipelines.wire.lifetime import stopping_by_signal

    with stopping_by_signal(None) as stop, stop.starting():
        daemon = await start_kubo(home, listen=listen, peers=peers)
        stop.started()
        try:
            record = {"address": daemon.address, "swarm": list(daemon.swarm_addresses), "pid": daemon.pid}
            lines = [f"RPC    {daemon.address}", *(f"swarm  {each}" for each in daemon.swarm_addresses)]
            screen.result(record, "\n".join([*lines, "Ctrl-C stops it"]))
            await stop.wait()
        finally:
            await daemon.stop()


async def _look(home: Home) -> dict[str, Any]:
    import json

    from dim_pipelines.content.kubo_http import KuboHttp
    from dim_pipelines.content.open import KUBO, kubo_address

    http = KuboHttp(kubo_address(KUBO, home), home)
    identity = json.loads(await http.call("id", timeout_s=_STATUS_S))
    connected = json.loads(await http.call("swarm/peers", timeout_s=_STATUS_S)).get("Peers") or []
    return {
        "address": http.address,
        "id": str(identity["ID"]),
        "version": str(identity.get("AgentVersion", "")),
        "swarm": [str(each) for each in identity.get("Addresses") or []],
        "peers": [f"{each['Addr']}/p2p/{each['Peer']}" for each in connected],
    }
