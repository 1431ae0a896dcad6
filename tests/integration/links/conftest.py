"""A network of orchestrators, attached nodes and callers over real gRPC with mutual TLS, on loopback."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from prometheus_client import CollectorRegistry

from dim_pipelines.dispatch.tunnel import Tunnel, open_tunnel
from dim_pipelines.domain.ipns import ipns_name
from dim_pipelines.domain.roster import Limits, Role
from dim_pipelines.errors import Forbidden
from dim_pipelines.identity.certificates import (
    ClientCertificate,
    ServerIdentity,
    client_public_key,
    load_client,
    load_or_create_ca,
    load_or_create_server,
    store_client,
)
from dim_pipelines.node.attachment import Attachment, doors_to
from dim_pipelines.orchestrator.link import LinkServicer
from dim_pipelines.settings import Home
from dim_pipelines.telemetry.metrics import LinkMetrics, RpcMetrics
from dim_pipelines.wire.access import METHOD_ROLES, Peer
from dim_pipelines.wire.callers import peer_of
from dim_pipelines.wire.channel import open_channel
from dim_pipelines.wire.server import RpcServer, SecureListener
from dim_pipelines.wire.tls import PinnedPeer, ServerTls

ECHO = "/test.Echo/Echo"
FETCH = "/test.Echo/Fetch"
SECRET = "/test.Echo/Secret"
NETWORK = "k51network"


async def until(condition: Callable[[], object], timeout_s: float = 60.0) -> None:
    """Wait for what nobody announces."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - it watches what sets no event
            await asyncio.sleep(0.01)


class Admission:
    """A guard that lets everybody in who was not revoked."""

    def __init__(self) -> None:
        self.out: set[str] = set()
        self._events: dict[str, asyncio.Event] = {}

    def check(self, peer: Peer) -> None:
        if peer.name in self.out:
            raise Forbidden("revoked: it lied")

    def revoked(self, peer: Peer) -> asyncio.Event:
        return self._events.setdefault(peer.name, asyncio.Event())

    def revoke(self, name: str) -> None:
        self.out.add(name)
        if name in self._events:
            self._events[name].set()


@dataclass
class Member:
    """A key with its home and its client certificate."""

    name: str
    home: Home
    client: ClientCertificate
    identity: ServerIdentity


@dataclass
class Orchestrator:
    """One that relays; also what the roster would say of it."""

    name: str
    label: str
    addresses: tuple[str, ...]
    certificate: bytes
    server: RpcServer
    servicer: LinkServicer
    registry: CollectorRegistry
    attached: list[str]
    detached: list[str]

    async def stop(self) -> None:
        self.servicer.close()
        await self.server.stop(0)


@dataclass
class Node:
    """A node with an echo server that is reached through tunnels only."""

    member: Member
    server: RpcServer
    attachment: Attachment
    running: asyncio.Task[None]
    changes: list[str]
    calls: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.member.name

    @property
    def pin(self) -> PinnedPeer:
        return PinnedPeer(self.name, self.member.identity.certificate)

    async def stop(self) -> None:
        self.running.cancel()
        await asyncio.wait([self.running])


class Stage:
    """Makes the parts and takes them away."""

    def __init__(self, folder: Path, stack: AsyncExitStack) -> None:
        self.folder = folder
        self.stack = stack
        self.limits: dict[str, Limits] = {}
        self.admission = Admission()
        self.ca = load_or_create_ca(Home(folder / "ca", ""), NETWORK, "ca")
        self.orchestrators: list[Orchestrator] = []

    def member(self, role: Role) -> Member:
        name = ipns_name(Ed25519PrivateKey.generate().public_key().public_bytes_raw())
        home = Home(self.folder / name[-8:], "")
        now_ms = int(time.time() * 1000)
        store_client(home, role, self.ca.issue(client_public_key(home), Peer(NETWORK, role, name), now_ms))
        return Member(name, home, load_client(home, role), load_or_create_server(home, name))

    def tls(self, identity: ServerIdentity) -> ServerTls:
        return ServerTls(identity, lambda: [self.ca.certificate], self.admission)

    async def orchestrator(
        self, label: str = "first", listen: str = "127.0.0.1:0", member: Member | None = None, **options: Any
    ) -> Orchestrator:
        member = member or self.member("orchestrator")
        registry = CollectorRegistry()
        attached: list[str] = []
        detached: list[str] = []
        kind = options.pop("kind", LinkServicer)
        servicer = kind(
            peer_of,
            lambda name: self.limits.get(name, Limits()),
            LinkMetrics(registry),
            on_attached=attached.append,
            on_detached=detached.append,
            **options,
        )
        server = await RpcServer.start(
            "",
            lambda server: [servicer.register(server)],
            RpcMetrics(registry),
            secure=SecureListener(listen, self.tls(member.identity)),
        )
        made = Orchestrator(
            member.name, label, (server.secure_address,), member.identity.certificate, server, servicer, registry,
            attached, detached,
        )  # fmt: skip
        self.orchestrators.append(made)
        self.stack.push_async_callback(made.stop)
        return made

    async def node(
        self,
        at: Callable[[], Sequence[Orchestrator]] | None = None,
        *,
        serves: str = "",
        member: Member | None = None,
        **options: Any,
    ) -> Node:
        """Start a node; `serves` is where its tunnels end when not at its echo server."""
        member = member or self.member("node")
        calls: list[str] = []

        async def echo(requests: Any, context: Any) -> None:
            calls.append(context.peer())
            while isinstance(data := await context.read(), bytes):
                await context.write(data)

        async def fetch(request: bytes, context: Any) -> AsyncIterator[bytes]:
            piece = bytes(1 << 20)
            for _ in range(int(request)):
                yield piece

        def register(server: grpc.aio.Server) -> list[str]:
            handlers = {
                "Echo": grpc.stream_stream_rpc_method_handler(echo),
                "Secret": grpc.stream_stream_rpc_method_handler(echo),
                "Fetch": grpc.unary_stream_rpc_method_handler(fetch),
            }
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", handlers),))
            return []

        server = await RpcServer.start(
            "",
            register,
            RpcMetrics(CollectorRegistry()),
            secure=SecureListener("127.0.0.1:0", self.tls(member.identity)),
        )
        self.stack.push_async_callback(server.stop, 0)
        changes: list[str] = []
        attachment = Attachment(
            member.name,
            b"boot",
            lambda: doors_to(at() if at else self.orchestrators, member.client),
            serves or server.secure_address,
            changed=lambda: changes.append(attachment.attached_to),
            choice=random.Random(1),
            **options,
        )
        made = Node(member, server, attachment, asyncio.create_task(attachment.run()), changes, calls)
        self.stack.push_async_callback(made.stop)
        return made

    async def attached(self, node: Node) -> Node:
        await until(lambda: node.attachment.attached_to)
        return node

    async def tunnel(self, orchestrator: Orchestrator, node: str, caller: Member) -> Tunnel:
        tunnel = await open_tunnel(orchestrator, node, caller.client)
        self.stack.push_async_callback(tunnel.close)
        return tunnel

    def channel(self, tunnel: Tunnel, pin: PinnedPeer, caller: Member) -> grpc.aio.Channel:
        channel = open_channel(tunnel.address, peer=pin, client=caller.client)
        self.stack.push_async_callback(channel.close, None)
        return channel

    def link(self, orchestrator: Orchestrator, member: Member) -> grpc.aio.Channel:
        """Give a bare channel to an orchestrator, for members that misbehave."""
        pin = PinnedPeer(orchestrator.name, orchestrator.certificate)
        channel = open_channel(orchestrator.addresses[0], peer=pin, client=member.client)
        self.stack.push_async_callback(channel.close, None)
        return channel


@pytest.fixture
async def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stage]:
    from dim_pipelines.wire import callers

    everyone = frozenset({"run_host", "orchestrator", "node"})
    roles = {ECHO: everyone, FETCH: everyone, SECRET: frozenset({"orchestrator"})}
    monkeypatch.setattr(callers, "METHOD_ROLES", {**METHOD_ROLES, **roles})
    async with AsyncExitStack() as stack:
        yield Stage(tmp_path, stack)
