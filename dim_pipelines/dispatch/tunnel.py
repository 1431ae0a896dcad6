"""The caller's end of tunnels to an attached node: a socket of this machine behind which the node's server answers.

An ordinary channel is pointed at the socket, with TLS pinned to the node's certificate. Each connection that is made to
it becomes one Connect stream at the orchestrator, which copies bytes and can neither read nor forge them; a connection
that ends up at another server fails in the handshake inside.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import grpc

from dim_pipelines.errors import ConfigurationError, DimError, NodeUnreachable
from dim_pipelines.wire.channel import open_channel
from dim_pipelines.wire.pump import CONNECT, Moved, Relay, open_tunnel_call, pump
from dim_pipelines.wire.tls import ClientKeys, PinnedPeer
from dim_pipelines.wire.v1 import link_pb2

log = logging.getLogger(__name__)

_LONGEST_BASE: Final = 60  # of the folder for sockets; unix(7) takes paths of 107 bytes
MAX_CONNECTIONS: Final = 16
"""Connections through one socket at a time; a channel makes one."""
_REACH_S: Final = 5.0  # for the handshake with one address of the orchestrator
_RETRY_S: Final = 1.0


class Tunnel:
    """Tunnels to one node through one orchestrator.

    Attributes:
        address: `unix:PATH`, for `open_channel(address, peer=…, client=…)`; for the owner of this process only.
        node: IPNS name of the node.
        moved: bytes that went through all tunnels so far.
        error: why the last connection broke; None while none has.
    """

    def __init__(self, channels: Sequence[Callable[[], grpc.aio.Channel]], node: str) -> None:
        """Listen; nothing is sent before somebody connects.

        Args:
            channels: make a channel to the orchestrator, one for each of its addresses; tried in order.
            node: IPNS name of the node.
        """
        self.node = node
        self.moved = Moved()
        self.error: DimError | None = None
        self._channels = channels
        base = tempfile.gettempdir()
        self._folder = Path(
            tempfile.mkdtemp(prefix="dim-", dir=base if len(os.fsencode(base)) < _LONGEST_BASE else "/tmp")
        )
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._listener.setblocking(False)
            path = self._folder / "tunnel"
            self._listener.bind(str(path))  # mkdtemp made the folder 0700: nobody else comes in
            path.chmod(0o600)
            self._listener.listen(MAX_CONNECTIONS)
        except OSError as error:
            self._remove()
            raise ConfigurationError(f"cannot make a socket in {self._folder}: {error.strerror}") from error
        self.address = f"unix:{path}"
        self._carrying: set[asyncio.Task[None]] = set()
        self._accepting = asyncio.create_task(self._accept())

    async def close(self) -> None:
        """Break the connections and remove the socket."""
        tasks = {self._accepting, *self._carrying}
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        self._remove()

    def _remove(self) -> None:
        self._listener.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                local, _ = await loop.sock_accept(self._listener)
            except OSError as error:  # out of descriptors: some may come back
                log.warning("the socket of a tunnel to %s takes no connection: %s", self.node, error)
                await asyncio.sleep(_RETRY_S)
                continue
            if len(self._carrying) >= MAX_CONNECTIONS:
                local.close()
                continue
            local.setblocking(False)
            task = asyncio.create_task(self._carry(local))
            self._carrying.add(task)
            task.add_done_callback(self._carrying.discard)

    async def _carry(self, local: socket.socket) -> None:
        """Carry one connection; when it breaks, the channel at the socket sees its connection end, as of any server."""
        with local:
            try:
                async with contextlib.AsyncExitStack() as stack:
                    channel = await self._reach(stack)
                    call = open_tunnel_call(channel, CONNECT)
                    with contextlib.suppress(asyncio.InvalidStateError, grpc.aio.AioRpcError):  # the pump says why
                        await call.write(link_pb2.Chunk(node=self.node).SerializeToString())
                    await pump(local, call, self.moved)
            except DimError as error:
                self.error = error
                log.info("a tunnel to %s broke: %s", self.node, error.message)
            except OSError as error:
                log.debug("the local end of a tunnel to %s broke: %s", self.node, error)

    async def _reach(self, stack: contextlib.AsyncExitStack) -> grpc.aio.Channel:
        """Give a channel to the first address that answers; nothing was read from the local end by then.

        Raises:
            NodeUnreachable: none does.
        """
        for make in self._channels:
            channel = make()
            try:
                async with asyncio.timeout(_REACH_S):
                    await channel.channel_ready()
            except BaseException as error:
                await channel.close(None)
                if isinstance(error, TimeoutError):
                    continue
                raise
            stack.push_async_callback(channel.close, None)
            return channel
        raise NodeUnreachable("the orchestrator does not answer", hint="the node may be attached to another one by now")


async def open_tunnel(orchestrator: Relay, node: str, client: ClientKeys) -> Tunnel:
    """Make a socket that leads to a node which is attached at an orchestrator.

    Args:
        orchestrator: where the node is attached, as its record says.
        node: IPNS name of the node.
        client: the caller's certificate (role run_host or orchestrator).

    Raises:
        ConfigurationError: an address is malformed, or no socket can be made.
    """
    peer = PinnedPeer(orchestrator.name, orchestrator.certificate)

    def to(address: str) -> Callable[[], grpc.aio.Channel]:
        return lambda: open_channel(address, peer=peer, client=client)

    return Tunnel([to(address) for address in orchestrator.addresses], node)
