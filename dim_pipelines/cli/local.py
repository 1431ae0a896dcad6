"""What a command starts on this machine and stops again when it ends: the content store, a Kubo, nodes."""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

if TYPE_CHECKING:
    from dim_pipelines.content.store import ContentStore
    from dim_pipelines.node.process import NodeProcess
    from dim_pipelines.settings import Home

OWNER: Final = "local"
"""Who owns what is done on one machine, before a network exists."""

IpfsOption = Annotated[
    str,
    typer.Option(
        "--ipfs",
        metavar="embedded|kubo|ADDRESS",
        envvar="DIM_IPFS",
        show_default="that of a running dim up, else embedded",
        help="Where content lies: the store in DIM_HOME, a Kubo that this command runs, or the API address of one.",
    ),
]


@asynccontextmanager
async def ipfs_address(home: Home, ipfs: str) -> AsyncIterator[str]:
    """Give what `open_store` takes: for `kubo` the address of a daemon that runs while the block does.

    Left out (empty), it is what a running `dim up` uses, else `embedded`.

    Raises:
        ConfigurationError: there is no `ipfs` program, or it does not start.
    """
    from dim_pipelines.orchestrator.running import find_running

    running = find_running(home)
    if not ipfs or (ipfs == "kubo" and running is not None and running.ipfs != "embedded"):
        yield running.ipfs if running is not None else "embedded"
        return
    if ipfs != "kubo":
        yield ipfs
        return
    from dim_pipelines.content.kubo_daemon import KuboDaemon

    daemon = KuboDaemon()
    await daemon.start(home.root / "kubo")
    try:
        yield daemon.address
    finally:
        await daemon.stop()


@asynccontextmanager
async def content_store(home: Home, ipfs: str) -> AsyncIterator[ContentStore]:
    """Open the content store that `--ipfs` names, and close it (and the Kubo it started) at the end."""
    from dim_pipelines.content.open import open_store

    async with ipfs_address(home, ipfs) as address:
        store = await open_store(address, home)
        try:
            yield store
        finally:
            await store.close()


@contextmanager
def node_homes(home: Home, count: int) -> Iterator[list[Path]]:
    """Lend `count` folders under `home.nodes` that no other command on this machine uses meanwhile.

    They are taken in order and kept, so that the next command finds the models its nodes already hold.
    """
    home.nodes.mkdir(mode=0o700, parents=True, exist_ok=True)
    lent: list[Path] = []
    locks: list[int] = []
    try:
        number = 0
        while len(lent) < count:
            number += 1
            lock = os.open(home.nodes / f"local-{number}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
                continue
            locks.append(lock)
            lent.append(home.nodes / f"local-{number}")
        yield lent
    finally:
        for lock in locks:
            os.close(lock)


@asynccontextmanager
async def local_nodes(
    home: Home, count: int, ipfs: str, *, prefix: str = "node"
) -> AsyncIterator[Sequence[NodeProcess]]:
    """Run `count` node daemons, each in a home of its own, that trust this home's user key.

    Args:
        home: the home whose batches the nodes take.
        count: how many.
        ipfs: `embedded` or the address of a Kubo.
        prefix: the nodes' names are this and a number.

    Raises:
        DimError: a node did not start.
    """
    from dim_pipelines.identity.keys import format_public_key, load_or_create_key, public_bytes

    trusted = format_public_key(public_bytes(load_or_create_key(home.user_key)))
    async with AsyncExitStack() as stack:
        folders = stack.enter_context(node_homes(home, count))
        nodes: list[NodeProcess] = []
        stack.push_async_callback(_stop, nodes)
        starting = [
            asyncio.to_thread(_start, nodes, folder, f"{prefix}-{number}", trusted, ipfs)
            for number, folder in enumerate(folders, start=1)
        ]
        await asyncio.gather(*starting)
        yield sorted(nodes, key=lambda node: node.name)


def _start(nodes: list[NodeProcess], folder: Path, name: str, trusted: str, ipfs: str) -> None:
    from dim_pipelines.node.process import NodeProcess

    nodes.append(NodeProcess.start(folder, name=name, trust=[trusted], ipfs=ipfs))


async def _stop(nodes: list[NodeProcess]) -> None:
    await asyncio.gather(*(asyncio.to_thread(node.stop) for node in nodes), return_exceptions=True)
