"""How soon a node that joins is used and seen: `dim up --ipfs kubo` in one home, and nodes that come to it in others.

Times count from the moment the daemon is started (`dim node start` typed) and from the moment it serves.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from dim_pipelines.errors import ConfigurationError, NodeUnreachable

if TYPE_CHECKING:
    from dim_pipelines.cli.console import Screen
    from dim_pipelines.discovery.node_table import NodeTable

_START_S: Final = 180.0
_SEEN_S: Final = 120.0
_LOOK_S: Final = 0.05
_QUERY: Final = """query ($label: String!) { assetNodeOrError(assetKey: {path: ["nodes"]}) {
  ... on AssetNode { assetMaterializations(partitions: [$label], limit: 1) { timestamp } } } }"""


@dataclass(slots=True)
class Joined:
    """Seconds of each node that joined.

    Attributes:
        join_s: `dim network join` typed until it has ended.
        served_s: daemon started until it serves.
        schedulable_s: daemon serves until work may go to it.
        page_s: daemon serves until Dagster's page shows it.
    """

    join_s: list[float] = field(default_factory=list)
    served_s: list[float] = field(default_factory=list)
    schedulable_s: list[float] = field(default_factory=list)
    page_s: list[float] = field(default_factory=list)


async def measure_joining(folder: Path, rounds: int, screen: Screen) -> dict[str, Joined]:
    """Let nodes join one after the other: by all roads, and by IPNS alone.

    Raises:
        ConfigurationError: a command failed; carries what it said.
        NodeUnreachable: a daemon did not start, or was not seen in time.
    """
    from dim_pipelines.database.engine import open_database
    from dim_pipelines.discovery.node_table import NodeTable

    home = folder / "up"
    port = _free_port()
    up = ("up", "--nodes", "1", "--ipfs", "kubo", "--port", str(port))
    found = {"hints": Joined(), "ipns": Joined()}
    async with running(home, "dim_pipelines.cli", *up, "--json", within_s=_START_S):
        database = open_database(f"sqlite:///{home / 'dim.db'}")
        try:
            for number in range(rounds):
                for way, joined in found.items():
                    label = f"{way}-{number}"
                    await _join(folder, home, label, way, NodeTable(database), port, joined)
                    screen.say(
                        f"{label}: joined in {joined.join_s[-1]:.1f} s, served after {joined.served_s[-1]:.1f} s, "
                        f"schedulable after {joined.schedulable_s[-1]:.2f} s, on the page {joined.page_s[-1]:.1f} s"
                    )
        finally:
            database.close()
    return found


async def _join(folder: Path, home: Path, label: str, way: str, table: NodeTable, port: int, joined: Joined) -> None:
    """Let one node join, see when it is known, and end it."""
    theirs = folder / label
    invite = (await run_dim(home, "network", "invite"))["invite"]
    begun = time.monotonic()
    await run_dim(theirs, "network", "join", invite, "--label", label)
    joined.join_s.append(time.monotonic() - begun)
    async with contextlib.AsyncExitStack() as stack:
        node: tuple[str, ...]
        if way == "ipns":  # for machines: the daemon that can be told to leave out roads takes a Kubo that runs
            await stack.enter_async_context(running(theirs, "dim_pipelines.cli", "kubo", "start", "--json"))
            node = ("dim_pipelines.node", "--ipfs", "kubo", "--name", label, "--road", "names")
        else:
            node = ("dim_pipelines.cli", "node", "start", "--ipfs", "kubo", "--name", label, "--json")
        begun = time.monotonic()
        await stack.enter_async_context(running(theirs, *node))
        served = time.monotonic()
        joined.served_s.append(served - begun)
        schedulable, page = await asyncio.gather(
            _seen(f"{label} is ELIGIBLE", lambda: _is_eligible(table, label)),
            _seen(f"{label} is on the page", lambda: _is_on_page(port, label)),
        )
        joined.schedulable_s.append(schedulable - served)
        joined.page_s.append(page - served)
    shutil.rmtree(theirs, ignore_errors=True)


def _is_eligible(table: NodeTable, label: str) -> bool:
    return any(row.label == label and row.state == "ELIGIBLE" for row in table.rows())


def _is_on_page(port: int, label: str) -> bool:
    body = json.dumps({"query": _QUERY, "variables": {"label": label}}).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}/graphql", body, {"Content-Type": "application/json"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=20) as response:
        answer = json.load(response)
    node = (answer.get("data") or {}).get("assetNodeOrError") or {}
    return bool(node.get("assetMaterializations"))


async def _seen(what: str, look: Callable[[], bool]) -> float:
    """Look until it is so, and give the monotonic time."""
    deadline = time.monotonic() + _SEEN_S
    while not await asyncio.to_thread(look):
        if time.monotonic() > deadline:
            raise NodeUnreachable(f"not within {_SEEN_S:.0f} s: {what}")
        await asyncio.sleep(_LOOK_S)
    return time.monotonic()


def _environment(home: Path) -> dict[str, str]:
    own = {key: value for key, value in os.environ.items() if not key.startswith(("DIM_", "DAGSTER_"))}
    return {**own, "DIM_HOME": str(home)}


async def run_dim(home: Path, *arguments: str) -> dict[str, Any]:
    """Type a command in a home and give what it prints.

    Raises:
        ConfigurationError: it failed; carries what it said.
    """
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "dim_pipelines.cli", *arguments, "--json"),
        env=_environment(home),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    said, complained = await process.communicate()
    if process.returncode:
        raise ConfigurationError(f"dim {' '.join(arguments[:2])} failed: {complained.decode(errors='replace')[-500:]}")
    answer: dict[str, Any] = json.loads(said.splitlines()[-1])
    return answer


@asynccontextmanager
async def running(home: Path, *command: str, within_s: float = 60.0) -> AsyncIterator[dict[str, Any]]:
    """Run a command of a home that goes on; gives the line that it prints when it is ready.

    Raises:
        NodeUnreachable: it ended, or was not ready in time.
    """
    await asyncio.to_thread(home.mkdir, parents=True, exist_ok=True)
    log = home / f"bench-{command[-1].strip('-')}.log"
    with await asyncio.to_thread(log.open, "wb") as errors:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", *command),
            env=_environment(home),
            stdout=asyncio.subprocess.PIPE,
            stderr=errors,
        )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(within_s):
            line = await process.stdout.readline()
        if not line:
            raise NodeUnreachable(f"{' '.join(command[:3])} has ended: {log.read_text(errors='replace')[-500:]}")
        yield json.loads(line)
    except TimeoutError as error:
        raise NodeUnreachable(f"{' '.join(command[:3])} was not ready within {within_s:.0f} s") from error
    finally:
        await _end(process)


async def _end(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    try:
        async with asyncio.timeout(30):
            await process.wait()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
