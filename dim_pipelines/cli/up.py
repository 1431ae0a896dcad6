"""`dim up`: an orchestrator, nodes, Dagster's page and Dagster's daemon on this machine, until Ctrl-C."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dim_pipelines.cli.console import DebugFlag, Exit, JsonFlag, Screen
from dim_pipelines.cli.local import OWNER, IpfsOption, LocalNodes, ipfs_address
from dim_pipelines.cli.orchestrator import AdvertiseOption, DoorOption, ListenOption
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
    listen: ListenOption = "127.0.0.1:0",
    door: DoorOption = "127.0.0.1:0",
    advertise: AdvertiseOption = None,
    as_json: JsonFlag = False,
    debug: DebugFlag = False,
) -> int:
    """Run an orchestrator, nodes, Dagster's page and Dagster's daemon here until Ctrl-C.

    A home that is in no network yet gets one (as by dim network init), and the nodes started here are its members;
    other machines join it with dim network invite and join, once --listen and --door are on an address they reach.
    A program that ends by itself is reported and started again once; when it ends again, everything ends.
    With --json it prints one object as soon as everything answers. Ctrl-C and SIGTERM are its proper end (exit code 0).
    """
    screen = Screen(as_json, debug)
    ready = asyncio.Event()
    try:
        meeting = ["--listen", listen, "--door", door]
        for each in advertise or []:
            meeting += ["--advertise", each]
        asyncio.run(_up(nodes, ipfs, port, meeting, screen, ready))
    except KeyboardInterrupt:
        if not ready.is_set():
            raise
    return Exit.DONE


async def _up(nodes: int, ipfs: str, port: int, meeting: list[str], screen: Screen, ready: asyncio.Event) -> None:
    from dim_pipelines.cli.supervise import supervise
    from dim_pipelines.orchestrator.dagster_daemon import prepare_instance
    from dim_pipelines.orchestrator.meeting_point import find_orchestrator
    from dim_pipelines.orchestrator.running import Running, announce
    from dim_pipelines.settings import Home

    home = Home.at()
    _check_port(port)
    page = f"http://127.0.0.1:{port}"
    async with contextlib.AsyncExitStack() as stack:
        tell = stack.enter_context(announce(home))
        leads = await asyncio.to_thread(_leads, home, screen)
        address = await stack.enter_async_context(ipfs_address(home, ipfs, heard=meeting[1]))
        first = [_orchestrator(home, address, meeting)] if leads else []
        dagster = _dagster(home, port, address)
        children = [*first, *dagster]
        adopting = partial(_adopt, home) if leads else None
        local = LocalNodes(home, nodes, address, prefix="node", adopt=adopting)
        try:
            with screen.progress("starting the orchestrator"):
                for child in first:
                    await child.start()
                    await child.wait_ready(_START_S)
            with screen.progress("starting nodes"):
                running = await local.start()
            addresses = tuple(node.address for node in running)
            with screen.progress("starting Dagster"):
                await asyncio.to_thread(prepare_instance, home)
                for child in dagster:
                    await child.start()
                for child in children:
                    await child.wait_ready(_START_S)
            found = find_orchestrator(home) if leads else None
            where = found.address if found is not None else ""
            tell(Running(os.getpid(), address, page, addresses, where))
            _say_ready(screen, home, page, address, {node.name: node.address for node in running}, where)
            ready.set()
            await supervise(children, screen.warn)
        finally:
            screen.say("stopping")
            await asyncio.shield(_stop(local, dagster, first))


async def _stop(local: LocalNodes, dagster: Sequence[Child], meeting: Sequence[Child]) -> None:
    """End everything; the orchestrator last, because nodes tell it that they go."""
    await asyncio.gather(local.stop(), *(child.stop() for child in dagster))
    await asyncio.gather(*(child.stop() for child in meeting))


def _leads(home: Home, screen: Screen) -> bool:
    """Tell whether this home is an orchestrator of its network; one that is in no network gets one."""
    from dim_pipelines.identity.membership import Membership
    from dim_pipelines.orchestrator.founding import found

    membership = Membership.load(home)
    if membership is None:
        membership = found(home, socket.gethostname(), OWNER, time.time_ns() // 1_000_000)
        screen.say(f"made the network {membership.network}")
    if "orchestrator" in membership.member.roles:
        return True
    screen.warn("this home is in its network as no orchestrator: the nodes started here take this home's batches only")
    return False


def _adopt(home: Home, nodes: Sequence[tuple[Path, str]]) -> None:
    from dim_pipelines.orchestrator.founding import adopt

    adopt(home, nodes, time.time_ns() // 1_000_000)


def _orchestrator(home: Home, ipfs: str, meeting: list[str]) -> Child:
    from dim_pipelines.cli.supervise import Child
    from dim_pipelines.orchestrator.meeting_point import find_orchestrator

    command = [sys.executable, "-m", "dim_pipelines.cli", "orchestrator", "start", "--home", str(home.root)]
    command += ["--ipfs", ipfs, *meeting]
    environment = {**os.environ, "DIM_HOME": str(home.root)}
    environment.setdefault("GRPC_VERBOSITY", "NONE")

    async def answers() -> bool:
        found = await asyncio.to_thread(find_orchestrator, home)
        return found is not None and child.process is not None and found.pid == child.process.pid

    child = Child("orchestrator", command, environment, home.logs / "orchestrator.log", answers)
    return child


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


def _say_ready(screen: Screen, home: Home, page: str, ipfs: str, nodes: dict[str, str], orchestrator: str) -> None:
    record: dict[str, Any] = {
        "page": page,
        "nodes": nodes,
        "ipfs": ipfs,
        "home": str(home.root),
        "orchestrator": orchestrator,
    }
    lines = [
        f"Dagster  {page}",
        *([f"network  {orchestrator}"] if orchestrator else []),
        *(f"node     {name}  {address}" for name, address in nodes.items()),
    ]
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
