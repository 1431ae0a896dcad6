"""The other orchestrators: their rosters and what they know of nodes, followed for as long as they are in the roster.

Any one orchestrator is enough for the network: what a node told one of them reaches the others here, as the same
signed bytes, and is judged anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import grpc

from dim_pipelines.discovery.resolver import Resolver
from dim_pipelines.errors import DimError, NodeUnreachable, RolledBack
from dim_pipelines.identity.membership import Membership, Orchestrator
from dim_pipelines.wire.channel import open_channel
from dim_pipelines.wire.status import from_rpc_error
from dim_pipelines.wire.tls import ClientKeys, PinnedPeer
from dim_pipelines.wire.v1 import orchestrator_pb2, orchestrator_pb2_grpc

log = logging.getLogger(__name__)

_PAUSE_S: Final = (1.0, 3.0)


class Peers:
    """Follows every other orchestrator of the roster."""

    def __init__(
        self,
        membership: Membership,
        client: ClientKeys,
        resolver: Resolver,
        *,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        """Make it; `client` is this orchestrator's certificate as a client."""
        self._membership, self._client, self._resolver = membership, client, resolver
        self._now_ms = now_ms
        self._states: dict[str, dict[str, str]] = {}
        self._following: dict[str, tuple[Orchestrator, asyncio.Task[None]]] = {}
        self._changed = asyncio.Event()

    async def states(self, orchestrator: str) -> Mapping[str, str]:
        """Give the state of each node that an orchestrator (IPNS name) knows.

        Raises:
            NodeUnreachable: it does not answer.
        """
        try:
            return self._states[orchestrator]
        except KeyError as error:
            raise NodeUnreachable("it does not answer, or is no orchestrator") from error

    async def run(self) -> None:
        """Follow until cancelled."""
        forget = self._membership.on_roster(lambda view: self._changed.set())
        try:
            while True:
                self._changed.clear()
                self._follow_those_there()
                await self._changed.wait()
        finally:
            forget()
            tasks = [task for _, task in self._following.values()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _follow_those_there(self) -> None:
        wanted = {each.name: each for each in self._membership.orchestrators() if each.name != self._membership.name}
        for name, (peer, task) in list(self._following.items()):
            if wanted.get(name) != peer:
                task.cancel()
                del self._following[name]
        for name, peer in wanted.items():
            if name not in self._following and peer.addresses:
                self._following[name] = peer, asyncio.create_task(self._follow(peer))

    async def _follow(self, peer: Orchestrator) -> None:
        while True:
            for address in peer.addresses:
                try:
                    await self._follow_at(peer, address)
                except DimError as error:
                    log.info("orchestrator %s at %s: %s", peer.label, address, error.message)
                finally:
                    self._states.pop(peer.name, None)
                await asyncio.sleep(random.uniform(*_PAUSE_S))

    async def _follow_at(self, peer: Orchestrator, address: str) -> None:
        channel = open_channel(address, peer=PinnedPeer(peer.name, peer.certificate), client=self._client)
        stub: Any = orchestrator_pb2_grpc.OrchestratorServiceStub(channel)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._follow_roster(stub))
                tasks.create_task(self._follow_nodes(stub, peer))
        except BaseExceptionGroup as group:
            error = _first(group)
            raise (from_rpc_error(error) if isinstance(error, grpc.aio.AioRpcError) else error) from group
        finally:
            await channel.close(None)

    async def _follow_roster(self, stub: Any) -> None:
        request = orchestrator_pb2.WatchRosterRequest(version=self._membership.roster.version, follow=True)
        async for update in stub.WatchRoster(request):
            try:
                self._membership.keep_roster(update.roster, list(update.pages), self._now_ms())
            except RolledBack as error:  # it is behind: it hears of the newer one from us
                log.info("a roster was not taken: %s", error.message)
        raise NodeUnreachable("it has ended the stream of rosters")

    async def _follow_nodes(self, stub: Any, peer: Orchestrator) -> None:
        async for node in stub.WatchNodes(orchestrator_pb2.WatchNodesRequest()):
            self._states.setdefault(peer.name, {})[node.name] = node.state
            if node.record and node.state != "GONE":
                with contextlib.suppress(DimError):  # counted by the resolver; known, or not good enough here
                    await self._resolver.offer(node.name, node.record, "peer")
        raise NodeUnreachable("it has ended the stream of nodes")


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
