"""`dim node`: the daemon that computes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dim_pipelines.cli.console import DebugFlag, Exit, JsonFlag, Screen
from dim_pipelines.cli.local import IpfsOption

if TYPE_CHECKING:
    from dim_pipelines.node.daemon import NodeAddress

app = typer.Typer(help="The daemon that computes.", no_args_is_help=True)


@app.callback()
def _node() -> None:
    """Keep `start` a command of its own while it is the only one."""


@app.command("start")
def start(
    home: Annotated[
        Path | None, typer.Option("--home", metavar="DIR", help="DIM_HOME of this node; $DIM_HOME when left out.")
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="The node's name; the host's name when left out.")] = None,
    listen: Annotated[
        str | None,
        typer.Option("--listen", metavar="ADDRESS", help="unix:PATH or 127.0.0.1:PORT."),
    ] = None,
    trust: Annotated[
        list[str] | None,
        typer.Option("--trust", metavar="KEY", help="Trust this key (ed25519:…) to submit batches and publish models."),
    ] = None,
    ipfs: IpfsOption = "",
    threads: Annotated[int, typer.Option("--threads", min=1, help="Threads of an engine process.")] = 1,
    metrics_port: Annotated[
        int | None,
        typer.Option("--metrics-port", min=0, max=65535, help="Serve /metrics on this port of 127.0.0.1."),
    ] = None,
    as_json: JsonFlag = False,
    debug: DebugFlag = False,
) -> int:
    """Run a node daemon here until Ctrl-C or SIGTERM; a second signal ends it at once.

    With --json it prints one object as soon as it is ready.
    """
    import asyncio

    screen = Screen(as_json, debug)
    asyncio.run(_serve(screen, home, name, listen, trust or [], ipfs, threads, metrics_port))
    return Exit.DONE


async def _serve(
    screen: Screen,
    folder: Path | None,
    name: str | None,
    listen: str | None,
    trust: list[str],
    ipfs: str,
    threads: int,
    metrics_port: int | None,
) -> None:
    import socket

    from dim_pipelines.cli.local import ipfs_address
    from dim_pipelines.node.daemon import NodeConfig, serve
    from dim_pipelines.settings import Home

    home = Home.at(folder)

    def ready(address: NodeAddress) -> None:
        record = {"name": address.name, "address": address.address, "pid": address.pid, "metrics": address.metrics}
        screen.result(record, f"node {address.name} at {address.address}")

    async with ipfs_address(home, ipfs) as content:
        config = NodeConfig(
            home=home,
            name=name or socket.gethostname(),
            listen=listen,
            ipfs=content,
            engine_threads=threads,
            trust=tuple(trust),
            metrics_port=metrics_port,
        )
        await serve(config, ready=ready)
