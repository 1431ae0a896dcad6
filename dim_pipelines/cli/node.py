"""`dim node`: the daemon that computes, and what its owner says to it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dim_pipelines.cli import node_models, node_owner
from dim_pipelines.cli.console import DebugFlag, Exit, JsonFlag, Screen
from dim_pipelines.cli.local import IpfsOption, PublicFlag, ipfs_address

if TYPE_CHECKING:
    from dim_pipelines.node.daemon import NodeAddress, NodeConfig
    from dim_pipelines.settings import Home

app = typer.Typer(help="The daemon that computes.", no_args_is_help=True)


@app.command("start")
def start(
    home: Annotated[
        Path | None, typer.Option("--home", metavar="DIR", help="DIM_HOME of this node; $DIM_HOME when left out.")
    ] = None,
    name: Annotated[
        str | None,
        typer.Option("--name", help="The node's name; left out: its label in the network, else the host's name."),
    ] = None,
    listen: Annotated[
        str | None,
        typer.Option(
            "--listen",
            metavar="ADDRESS",
            help="In a network HOST:PORT for others, with TLS; without one unix:PATH or 127.0.0.1:PORT.",
        ),
    ] = None,
    advertise: Annotated[
        list[str] | None,
        typer.Option(
            "--advertise",
            metavar="HOST:PORT",
            help="Where others reach it, when that is not one of this machine's addresses; may be repeated.",
        ),
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

    In a home that has joined a network (dim network join) it also serves the network's members, with TLS, announces
    itself, and keeps a connection to an orchestrator where nobody can connect to this machine.
    With --json it prints one object as soon as it serves.
    """
    from dim_pipelines.node.daemon import NodeConfig
    from dim_pipelines.settings import Home

    where = Home.at(home)
    local, secure = _listeners(where, listen or "")
    config = NodeConfig(
        home=where,
        name=name or "",
        listen=local,
        secure_listen=secure,
        advertise=tuple(advertise or ()),
        ipfs=ipfs,
        public=public,
        engine_threads=threads,
        devices=tuple(device or ["cpu"]),
        metrics_port=metrics_port,
    )
    _trust(config.home, trust or [])
    asyncio.run(_serve(Screen(as_json, debug), config))
    return Exit.DONE


for _command in (
    node_owner.status,
    node_owner.pause,
    node_owner.resume,
    node_owner.set_,
    node_owner.drain,
    node_models.warm,
    node_models.benchmark,
):
    app.command(_command.__name__.rstrip("_"))(_command)


def _listeners(home: Home, listen: str) -> tuple[str, str]:
    """Give what `--listen` means: the address for this machine, and the one for others.

    Raises:
        ConfigurationError: the home's membership is damaged.
    """
    from dim_pipelines.identity.membership import Membership

    if listen.startswith("unix:") or not listen or Membership.load(home) is None:
        return listen, ""
    return "", listen


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

    from dim_pipelines.identity.membership import Membership
    from dim_pipelines.node.daemon import serve
    from dim_pipelines.telemetry.logging import set_up

    set_up(file=config.home.logs / "node.log")

    def ready(address: NodeAddress) -> None:
        lines = [f"node {address.name} serves at {address.address}", f"key  {address.key}"]
        lines += [f"in network {address.network} at {address.secure}"] if address.network else []
        lines += [f"metrics at {address.metrics}"] if address.metrics else []
        lines.append(f"log  {config.home.logs / 'node.log'}")
        screen.result(asdict(address), "\n".join(lines))
        if not address.network and Membership.load(config.home) is not None:
            screen.warn(
                "this home is in its network, but not as a node: the daemon serves this machine only; a node has a "
                "home of its own: DIM_HOME=DIR dim network join INVITE"
            )

    async with ipfs_address(config.home, config.ipfs) as content:
        await serve(replace(config, ipfs=content), ready=ready)
