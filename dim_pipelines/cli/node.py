"""`dim node`: the daemon that computes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dim_pipelines.cli.console import DebugFlag, Exit, JsonFlag, Screen
from dim_pipelines.cli.local import IpfsOption, PublicFlag, ipfs_address

if TYPE_CHECKING:
    from dim_pipelines.node.daemon import NodeAddress, NodeConfig
    from dim_pipelines.settings import Home

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
        typer.Option(
            "--trust",
            metavar="KEY",
            help="Trust this key (ed25519:…) from now on to submit batches and publish models.",
        ),
    ] = None,
    ipfs: IpfsOption = "",
    public: PublicFlag = False,
    device: Annotated[
        list[str] | None, typer.Option("--device", help="cpu (the default), or cuda:0, cuda:1 …; may be repeated.")
    ] = None,
    threads: Annotated[int, typer.Option("--threads", min=1, help="Threads of an engine process.")] = 1,
    metrics_port: Annotated[
        int, typer.Option("--metrics-port", min=0, max=65535, help="Port of /metrics on 127.0.0.1; 0: a free one.")
    ] = 0,
    as_json: JsonFlag = False,
    debug: DebugFlag = False,
) -> int:
    """Run a node daemon here until Ctrl-C or SIGTERM, which drain it; a second signal ends it at once.

    With --json it prints one object as soon as it serves.
    """
    import asyncio
    import socket

    from dim_pipelines.node.daemon import NodeConfig
    from dim_pipelines.settings import Home

    config = NodeConfig(
        home=Home.at(home),
        name=name or socket.gethostname(),
        listen=listen or "",
        ipfs=ipfs,
        public=public,
        engine_threads=threads,
        devices=tuple(device or ["cpu"]),
        metrics_port=metrics_port,
    )
    _trust(config.home, trust or [])
    asyncio.run(_serve(Screen(as_json, debug), config))
    return Exit.DONE


def _trust(home: Home, keys: list[str]) -> None:
    """Write the keys into the home's trusted.yaml, where the next start finds them too.

    Raises:
        ConfigurationError: one is no key, or the file cannot be read or written.
    """
    from dim_pipelines.identity.keys import parse_public_key
    from dim_pipelines.identity.trust import load_trust, save_trust

    trust = before = load_trust(home.trusted)
    for key in keys:
        trust = trust.including(parse_public_key(key))
    if trust != before:
        save_trust(home.trusted, trust)


async def _serve(screen: Screen, config: NodeConfig) -> None:
    from dataclasses import asdict, replace

    from dim_pipelines.node.daemon import serve

    def ready(address: NodeAddress) -> None:
        lines = [f"node {address.name} serves at {address.address}", f"key  {address.key}"]
        lines += [f"metrics at {address.metrics}"] if address.metrics else []
        screen.result(asdict(address), "\n".join(lines))

    async with ipfs_address(config.home, config.ipfs) as content:
        await serve(replace(config, ipfs=content), ready=ready)
