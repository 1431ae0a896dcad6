"""What a command starts on this machine and stops again when it ends: the content store, a Kubo, nodes."""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

if TYPE_CHECKING:
    from dim_pipelines.content.store import ContentStore
    from dim_pipelines.node.process import NodeProcess, StartingNode
    from dim_pipelines.settings import Home

OWNER: Final = "local"
"""Who owns what is done on one machine, before a network exists."""

STOP_S: Final = 5.0
"""How long a node may take to drain when the command that started it ends, in seconds; then it is killed."""

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

PublicFlag = Annotated[
    bool, typer.Option("--public", help="Allow adding to a Kubo whose content strangers may be able to read.")
]


@asynccontextmanager
async def ipfs_address(home: Home, ipfs: str, heard: str = "") -> AsyncIterator[str]:
    """Give what `open_store` takes: for `kubo` the address of the home's own, which is started where it does not run.

    Left out (empty), it is what a running `dim up` uses, else `embedded`.

    Args:
        home: whose Kubo it is.
        ipfs: the word or address.
        heard: `HOST:PORT` of the server beside which Kubo runs: where others of the network reach it.

    Raises:
        ConfigurationError: there is no `ipfs` program, or it does not start.
    """
    from dim_pipelines.orchestrator.running import find_running

    if not ipfs:
        running = find_running(home)
        ipfs = running.ipfs if running is not None else "embedded"
    if ipfs != "kubo":
        yield ipfs
        return
    from dim_pipelines.content.kubo_repository import running_kubo
    from dim_pipelines.discovery.network_kubo import start_kubo, swarm_listen

    if (address := running_kubo(home.root / "kubo")) is not None:
        yield address
        return
    daemon = await start_kubo(home, listen=swarm_listen(heard))
    try:
        yield daemon.address
    finally:
        await daemon.stop()


@asynccontextmanager
async def content_store(home: Home, ipfs: str, *, public: bool = False) -> AsyncIterator[ContentStore]:
    """Open the content store that `--ipfs` names, and close it (and the Kubo it started) at the end.

    Raises:
        DimError: it does not open, does not answer, or is public and `public` was not said.
    """
    from dim_pipelines.content.open import open_store

    async with ipfs_address(home, ipfs) as address:
        store = await open_store(address, home, public=public)
        try:
            yield store
        finally:
            await store.close()


@contextmanager
def node_homes(home: Home, count: int, stem: str = "local") -> Iterator[list[Path]]:
    """Lend `count` folders under `home.nodes` that no other command on this machine uses meanwhile.

    They are taken in order and kept, so that the next command finds the models its nodes already hold. Their names are
    the stem and a number: nodes that are members of a network have other folders than those that are not.
    """
    home.nodes.mkdir(mode=0o700, parents=True, exist_ok=True)
    lent: list[Path] = []
    locks: list[int] = []
    try:
        number = 0
        while len(lent) < count:
            number += 1
            lock = os.open(home.nodes / f"{stem}-{number}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
                continue
            locks.append(lock)
            lent.append(home.nodes / f"{stem}-{number}")
        yield lent
    finally:
        for lock in locks:
            os.close(lock)


Adopt = Callable[[Sequence[tuple[Path, str]]], None]
"""Makes homes of nodes members of a network, given each home and its node's name; it may block."""


class LocalNodes:
    """Node daemons that live as long as a command: each in a home of its own, all trusting the home's user key."""

    def __init__(
        self,
        home: Home,
        count: int,
        ipfs: str,
        *,
        prefix: str,
        engines: Iterable[str] = (),
        public: bool = False,
        adopt: Adopt | None = None,
    ) -> None:
        """Say which nodes; nothing is started yet.

        Args:
            home: the home whose batches the nodes take.
            count: how many.
            ipfs: `embedded` or the address of a Kubo.
            prefix: the nodes' names are this and a number.
            engines: the only engines they need to have; all that can be imported when left out.
            public: they may add to a Kubo that is not shown to be private.
            adopt: makes their homes, with their names, members of a network before they start; else they are in none.
        """
        self._adopt = adopt
        self._options = [word for engine in sorted(set(engines)) for word in ("--engine", engine)]
        self._options += ["--public"] if public else []
        self._home = home
        self._count = count
        self._ipfs = ipfs
        self._prefix = prefix
        self._folders = ExitStack()
        self._nodes: list[tuple[StartingNode, asyncio.Task[NodeProcess]]] = []

    async def start(self) -> list[NodeProcess]:
        """Start them all and return when each is ready.

        Raises:
            DimError: one did not start.
        """
        from dim_pipelines.identity.keys import format_public_key, load_or_create_key, public_bytes
        from dim_pipelines.node.process import StartingNode

        trusted = format_public_key(public_bytes(load_or_create_key(self._home.user_key)))
        stem = "local" if self._adopt is None else "member"
        folders = self._folders.enter_context(node_homes(self._home, self._count, stem))
        named = [(folder, f"{self._prefix}-{number}") for number, folder in enumerate(folders, start=1)]
        if self._adopt is not None:
            await asyncio.to_thread(self._adopt, named)
        for folder, name in named:
            node = StartingNode.spawn(folder, name=name, trust=[trusted], ipfs=self._ipfs, options=self._options)
            self._nodes.append((node, asyncio.create_task(asyncio.to_thread(node.wait))))
        return [await asyncio.shield(serving) for _, serving in self._nodes]

    async def stop(self) -> None:
        """Stop those that serve and end those that do not yet; returns when all have ended."""
        for node, serving in self._nodes:
            if not serving.done():
                node.kill()
        served = await asyncio.gather(*(serving for _, serving in self._nodes), return_exceptions=True)
        alive = [node for node in served if not isinstance(node, BaseException)]
        await asyncio.gather(*(asyncio.to_thread(node.stop, STOP_S) for node in alive))
        self._folders.close()


@asynccontextmanager
async def local_nodes(
    home: Home, count: int, ipfs: str, *, prefix: str, adopt: Adopt | None = None
) -> AsyncIterator[list[NodeProcess]]:
    """Run local nodes while the block runs; arguments and errors as of `LocalNodes`."""
    nodes = LocalNodes(home, count, ipfs, prefix=prefix, adopt=adopt)
    try:
        yield await nodes.start()
    finally:
        await nodes.stop()
