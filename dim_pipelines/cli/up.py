"""`dim up`: nodes, Dagster's page and Dagster's daemon on this machine, until Ctrl-C."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dim_pipelines.cli.console import DebugFlag, Exit, JsonFlag, Screen
from dim_pipelines.cli.local import IpfsOption, ipfs_address, local_nodes
from dim_pipelines.errors import ConfigurationError

if TYPE_CHECKING:
    from dim_pipelines.cli.supervise import Child
    from dim_pipelines.settings import Home

_START_S = 90.0
"""How long Dagster's page may take to answer, in seconds: it imports the definitions in a process of its own."""


def up(
    nodes: Annotated[int, typer.Option("--nodes", min=1, max=64, help="Local node daemons to start.")] = 1,
    ipfs: IpfsOption = "embedded",
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Port of Dagster's page on 127.0.0.1.")] = 3000,
    as_json: JsonFlag = False,
    debug: DebugFlag = False,
) -> int:
    """Run nodes, Dagster's page and Dagster's daemon here until Ctrl-C.

    A program that ends by itself is reported and started again once; when it ends again, everything ends.
    With --json it prints one object as soon as everything answers. Ctrl-C and SIGTERM are its proper end (exit code 0).
    """
    screen = Screen(as_json, debug)
    ready = asyncio.Event()
    try:
        asyncio.run(_up(nodes, ipfs, port, screen, ready))
    except KeyboardInterrupt:
        if not ready.is_set():
            raise
    return Exit.DONE


async def _up(count: int, ipfs: str, port: int, screen: Screen, ready: asyncio.Event) -> None:
    from dim_pipelines.cli.supervise import supervise
    from dim_pipelines.orchestrator.dagster_daemon import prepare_instance
    from dim_pipelines.orchestrator.running import Running, announce
    from dim_pipelines.settings import Home

    home = Home.at()
    _check_port(port)
    page = f"http://127.0.0.1:{port}"
    async with contextlib.AsyncExitStack() as stack:
        tell = stack.enter_context(announce(home))
        address = await stack.enter_async_context(ipfs_address(home, ipfs))
        with screen.progress("starting nodes"):
            running = await stack.enter_async_context(local_nodes(home, count, address, prefix="node"))
        addresses = tuple(node.address for node in running)
        children = _dagster(home, port, address)
        try:
            with screen.progress("starting Dagster"):
                await asyncio.to_thread(prepare_instance, home)
                for child in children:
                    await child.start()
                for child in children:
                    await child.wait_ready(_START_S)
            tell(Running(os.getpid(), address, page, addresses))
            _say_ready(screen, home, page, address, {node.name: node.address for node in running})
            ready.set()
            await supervise(children, screen.warn)
        finally:
            screen.say("stopping")
            await asyncio.shield(asyncio.gather(*(child.stop() for child in children)))


def _dagster(home: Home, port: int, ipfs: str) -> list[Child]:
    from dim_pipelines.cli.supervise import Child
    from dim_pipelines.orchestrator.dagster_instance import daemon_command, dagster_environment, webserver_command

    environment = {**os.environ, **dagster_environment(home), "DIM_IPFS": ipfs}

    async def answers() -> bool:
        return await asyncio.to_thread(_answers, port)

    return [
        Child(
            "dagster-webserver",
            webserver_command(home, port),
            environment,
            home.logs / "dagster-webserver.log",
            answers,
        ),
        Child("dagster-daemon", daemon_command(home), environment, home.logs / "dagster-daemon.log"),
    ]


def _answers(port: int) -> bool:
    import urllib.request

    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://127.0.0.1:{port}/server_info", timeout=2) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def _say_ready(screen: Screen, home: Home, page: str, ipfs: str, nodes: dict[str, str]) -> None:
    record: dict[str, Any] = {"page": page, "nodes": nodes, "ipfs": ipfs, "home": str(home.root)}
    lines = [f"Dagster  {page}", *(f"node     {name}  {address}" for name, address in nodes.items())]
    lines += [f"content  {ipfs if ipfs != 'embedded' else home.store}", f"logs     {home.logs}"]
    lines.append("Ctrl-C stops everything")
    screen.result(record, "\n".join(lines))


def _check_port(port: int) -> None:
    """Refuse a port that somebody listens on.

    Raises:
        ConfigurationError: it is in use, or may not be used.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise ConfigurationError(
                f"port {port} cannot be used: {(error.strerror or '').lower()}", hint=f"dim up --port {port + 1}"
            ) from error
