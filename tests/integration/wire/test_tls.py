"""Servers with mutual TLS on loopback: who is let in, what the others are told, and what a revocation cuts."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry

from dim_pipelines.errors import DimError, Forbidden, NodeRefused, NodeUnreachable, Unauthenticated
from dim_pipelines.identity.certificates import (
    client_public_key,
    load_or_create_ca,
    load_or_create_server,
    store_client,
)
from dim_pipelines.identity.membership import Membership
from dim_pipelines.settings import Home
from dim_pipelines.telemetry.metrics import RpcMetrics
from dim_pipelines.testing.networks import MadeNetwork, now_ms
from dim_pipelines.wire.access import Peer
from dim_pipelines.wire.channel import open_channel
from dim_pipelines.wire.interceptors import peer_of
from dim_pipelines.wire.server import RpcServer, SecureListener
from dim_pipelines.wire.status import from_rpc_error
from dim_pipelines.wire.tls import ClientKeys, PinnedPeer, ServerTls, certificate_hash, fetch_certificate
from dim_pipelines.wire.v1 import link_pb2, link_pb2_grpc, node_pb2, node_pb2_grpc, orchestrator_pb2
from dim_pipelines.wire.v1 import orchestrator_pb2_grpc as orchestrator_grpc

EVENTUALLY = 60.0


class Services(
    node_pb2_grpc.NodeServiceServicer,
    orchestrator_grpc.OrchestratorServiceServicer,
    link_pb2_grpc.LinkServiceServicer,
):
    """Notes who called; streams stay open until their caller ends them."""

    def __init__(self) -> None:
        self.seen: list[Peer | None] = []
        self.ended: list[str] = []
        self.one_ended = asyncio.Event()

    def end(self, what: str) -> None:
        self.ended.append(what)
        self.one_ended.set()

    async def DescribeNode(self, request: Any, context: Any) -> node_pb2.NodeDescription:
        self.seen.append(peer_of(context))
        return node_pb2.NodeDescription(name="it")

    async def Drain(self, request: Any, context: Any) -> node_pb2.DrainReply:
        return node_pb2.DrainReply()

    async def Join(self, request: Any, context: Any) -> orchestrator_pb2.JoinReply:
        self.seen.append(peer_of(context))
        return orchestrator_pb2.JoinReply()

    async def Work(self, request_iterator: Any, context: Any) -> None:
        try:
            await context.write(node_pb2.NodeMessage())
            async for _ in request_iterator:
                await context.write(node_pb2.NodeMessage())
        finally:
            self.end("Work")

    async def WatchNodes(self, request: Any, context: Any) -> AsyncIterator[orchestrator_pb2.NodeState]:
        try:
            while True:
                yield orchestrator_pb2.NodeState(record=bytes(1 << 20))
        finally:
            self.end("WatchNodes")

    async def Attach(self, request_iterator: Any, context: Any) -> AsyncIterator[link_pb2.AttachEvent]:
        try:
            yield link_pb2.AttachEvent()
            async for _ in request_iterator:
                yield link_pb2.AttachEvent()
        finally:
            self.end("Attach")

    def register(self, server: grpc.aio.Server) -> Sequence[str]:
        node_pb2_grpc.add_NodeServiceServicer_to_server(self, server)
        orchestrator_grpc.add_OrchestratorServiceServicer_to_server(self, server)
        nobodys = grpc.method_handlers_generic_handler(
            "dim.v1.Forgotten", {"Call": grpc.unary_unary_rpc_method_handler(self.Drain)}
        )
        server.add_generic_rpc_handlers((nobodys,))
        link_pb2_grpc.add_LinkServiceServicer_to_server(self, server)
        return ["dim.v1.NodeService", "dim.v1.OrchestratorService", "dim.v1.LinkService"]


class Served:
    """A network, and a node of it that serves."""

    def __init__(self, network: MadeNetwork, node: Membership) -> None:
        self.network, self.node = network, node
        self.services, self.registry = Services(), CollectorRegistry()
        self.server: RpcServer
        self.channels: list[grpc.aio.Channel] = []

    def tls(self) -> ServerTls:
        return ServerTls(self.node.server(), lambda: self.node.roster.client_cas(), self.node.guard)

    def pin(self) -> PinnedPeer:
        return PinnedPeer(self.node.name, self.node.server().certificate)

    def channel(self, client: ClientKeys | None, *, address: str = "", peer: PinnedPeer | None = None) -> Any:
        made = open_channel(address or self.server.secure_address, peer=peer or self.pin(), client=client)
        self.channels.append(made)
        return made

    def describe(self, client: ClientKeys | None, **where: Any) -> Awaitable[Any]:
        stub = node_pb2_grpc.NodeServiceStub(self.channel(client, **where))
        return stub.DescribeNode(node_pb2.DescribeNodeRequest(), timeout=EVENTUALLY)

    def follow_roster(self) -> None:
        """Bring the newest roster to the node."""
        self.node.keep_roster(self.network.roster.signed, self.network.roster.pages, now_ms())

    def refusals(self, method: str, reason: str, service: str = "dim.v1.NodeService") -> float:
        labels = {"service": service, "method": method, "reason": reason}
        return self.registry.get_sample_value("dim_rpc_refusals_total", labels) or 0.0


@asynccontextmanager
async def serving(folder: Path, listen: str = "127.0.0.1:0", door: bool = False) -> AsyncIterator[Served]:
    network = MadeNetwork(folder)
    made = Served(network, network.join("node", "node"))
    made.server = await RpcServer.start(
        "", made.services.register, RpcMetrics(made.registry), secure=SecureListener(listen, made.tls(), door)
    )
    try:
        yield made
    finally:
        for channel in made.channels:
            await channel.close()
        await made.server.stop(0)


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with serving(tmp_path) as made:
        yield made


async def refusal(call: Awaitable[Any]) -> DimError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc_error(caught.value)


async def test_a_member_is_let_in_and_the_handler_knows_it(served: Served) -> None:
    await served.describe(served.network.orchestrator.client("run_host"))
    (peer,) = served.services.seen
    assert peer is not None
    assert (peer.network, peer.role, peer.name) == (served.network.id, "run_host", served.network.orchestrator.name)


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "[::1]:0", "0.0.0.0:0", "[::]:0"])
async def test_any_address_of_the_machine_will_do(tmp_path: Path, listen: str) -> None:
    async with serving(tmp_path, listen) as served:
        host, _, port = served.server.secure_address.rpartition(":")
        near = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(host, host)
        await served.describe(served.network.orchestrator.client("user"), address=f"{near}:{port}")
        assert port != "0" and len(served.services.seen) == 1


async def test_tls_goes_through_a_unix_socket_too(tmp_path: Path) -> None:
    """The near end of a tunnel is one."""
    async with serving(tmp_path, f"unix:{tmp_path}/t") as served:
        await served.describe(served.network.orchestrator.client("user"))
        assert len(served.services.seen) == 1


async def test_another_server_than_the_pinned_one_is_not_spoken_to(served: Served, tmp_path: Path) -> None:
    other = load_or_create_server(Home.at(tmp_path / "other"), served.node.name)
    error = await refusal(
        served.describe(
            served.network.orchestrator.client("user"), peer=PinnedPeer(served.node.name, other.certificate)
        )
    )
    assert isinstance(error, NodeUnreachable) and "another certificate" in error.message
    error = await refusal(
        served.describe(
            served.network.orchestrator.client("user"), peer=PinnedPeer("k51other", served.pin().certificate)
        )
    )
    assert isinstance(error, NodeUnreachable) and "another certificate" in error.message
    assert not served.services.seen


async def test_a_caller_without_a_certificate_or_with_a_foreign_one_gets_no_connection(
    served: Served, tmp_path: Path
) -> None:
    alone = await refusal(served.describe(None))
    assert isinstance(alone, NodeUnreachable) and "closed the connection" in alone.message and "doctor" in alone.hint
    user = served.network.orchestrator
    foreign = load_or_create_ca(Home.at(tmp_path / "foreign"), served.network.id, user.name)
    peer = Peer(served.network.id, "user", user.name)
    store_client(user.home, "user", foreign.issue(client_public_key(user.home), peer, now_ms()))
    assert isinstance(await refusal(served.describe(user.client("user"))), NodeUnreachable)
    with pytest.raises(grpc.aio.AioRpcError):  # plaintext on the secure port
        async with grpc.aio.insecure_channel(served.server.secure_address) as plain:
            await node_pb2_grpc.NodeServiceStub(plain).DescribeNode(node_pb2.DescribeNodeRequest(), timeout=EVENTUALLY)
    assert not served.services.seen


async def test_who_is_refused_hears_why_and_it_is_counted_and_logged_once(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "dim_pipelines.wire.callers")
    network, user = served.network, served.network.orchestrator

    async def as_peer(peer: Peer, *, at_ms: int = 0, hours: int = 24) -> DimError:
        issued = network.ca.issue(client_public_key(user.home), peer, at_ms or now_ms(), hours)
        store_client(user.home, "user", issued)
        return await refusal(served.describe(user.client("user")))

    mine = Peer(network.id, "user", user.name)
    another = await as_peer(replace(mine, network="k51another"))
    assert isinstance(another, Forbidden) and "another network" in another.message
    stranger = await as_peer(replace(mine, name=network.id))
    assert isinstance(stranger, Forbidden) and "no member" in stranger.message and "invite" in stranger.hint
    role = await as_peer(replace(mine, role="node"))
    assert isinstance(role, Forbidden) and "is no node" in role.message
    # A clock 10 minutes ahead of the issuer's is within the certificate's time, one 11 minutes behind is not.
    early = await as_peer(mine, at_ms=now_ms() + 11 * 60_000)
    assert isinstance(early, NodeUnreachable | Unauthenticated)
    ended = await as_peer(mine, at_ms=now_ms() - 48 * 3_600_000)
    assert isinstance(ended, NodeUnreachable | Unauthenticated)
    before = len(caplog.records)
    for _ in range(3):
        await as_peer(replace(mine, role="node"))
    assert len(caplog.records) == before, "the same refusal was logged again"
    assert served.refusals("DescribeNode", "forbidden") == 6
    assert not served.services.seen


async def test_each_method_is_for_its_roles(served: Served) -> None:
    network = served.network
    user = network.join("user", "user")
    other = network.join("other", "node")
    served.follow_roster()
    stub = node_pb2_grpc.NodeServiceStub(served.channel(user.client("user")))
    await stub.DescribeNode(node_pb2.DescribeNodeRequest(), timeout=EVENTUALLY)
    error = await refusal(stub.Drain(node_pb2.DrainRequest(), timeout=EVENTUALLY))
    assert isinstance(error, Forbidden) and "is for orchestrator" in error.message and "as user" in error.message
    work = node_pb2_grpc.NodeServiceStub(served.channel(other.client("node"))).Work()
    assert isinstance(await refusal(work.read()), Forbidden)
    assert served.refusals("Work", "forbidden") == 1
    # A method that nobody has given a role is refused, and an unknown one is unknown.
    strange = served.channel(network.orchestrator.client("orchestrator"))
    error = await refusal(strange.unary_unary("/dim.v1.Forgotten/Call")(b"", timeout=EVENTUALLY))
    assert isinstance(error, Forbidden) and "no role may call" in error.message
    assert served.refusals("", "forbidden", service="") == 1
    unknown = await refusal(strange.unary_unary("/dim.v1.NodeService/Nothing")(b"", timeout=EVENTUALLY))
    assert isinstance(unknown, NodeRefused)


async def test_an_expired_certificate_is_refused_on_a_connection_that_stands(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    channel = served.channel(served.network.orchestrator.client("user"))
    stub = node_pb2_grpc.NodeServiceStub(channel)
    await stub.DescribeNode(node_pb2.DescribeNodeRequest(), timeout=EVENTUALLY)
    later = now_ms() + 25 * 3_600_000
    monkeypatch.setattr("dim_pipelines.wire.callers.time.time_ns", lambda: later * 1_000_000)
    error = await refusal(stub.DescribeNode(node_pb2.DescribeNodeRequest(), timeout=EVENTUALLY))
    assert isinstance(error, Unauthenticated) and re.search(r"ended \d+ min ago", error.message)
    assert served.refusals("DescribeNode", "unauthenticated") == 1


@pytest.mark.parametrize("kind", ["Work", "Attach", "WatchNodes"])
async def test_a_revocation_cuts_open_streams_and_only_those_of_the_revoked(served: Served, kind: str) -> None:
    """Also of a caller that does not read: its handler waits in a write and must end all the same."""
    network = served.network
    role: Any = {"Work": "run_host", "Attach": "node", "WatchNodes": "user"}[kind]
    bad, good = network.join("bad", role), network.join("good", role)
    served.follow_roster()

    def stream(home: Membership) -> Any:
        channel = served.channel(home.client(role))
        if kind == "Work":
            return node_pb2_grpc.NodeServiceStub(channel).Work()
        if kind == "Attach":
            return link_pb2_grpc.LinkServiceStub(channel).Attach()
        return orchestrator_grpc.OrchestratorServiceStub(channel).WatchNodes(orchestrator_pb2.WatchNodesRequest())

    cut, kept = stream(bad), stream(good)
    await cut.read()
    await kept.read()
    network.revoke(bad.name, "it lied")
    served.follow_roster()

    async def drain() -> None:
        while await cut.read() is not grpc.aio.EOF:
            pass

    async with asyncio.timeout(EVENTUALLY):
        await served.services.one_ended.wait()
        error = await refusal(drain())
    assert served.services.ended == [kind]
    assert isinstance(error, Forbidden) and "revoked: it lied" in error.message
    if kind != "WatchNodes":
        await kept.write(node_pb2.DispatcherMessage() if kind == "Work" else link_pb2.AttachMessage())
    assert await kept.read() is not grpc.aio.EOF
    # The connection stands, and each RPC on it is refused as well.
    again = await refusal(served.describe(bad.client(role)))
    assert isinstance(again, Forbidden) and "it lied" in again.message
    kept.cancel()


async def test_a_ca_that_leaves_the_roster_takes_its_certificates_with_it(served: Served) -> None:
    network = served.network
    other = Home.at(network.orchestrator.home.root.parent / "second")
    second = network.join("second", "orchestrator", "run_host", home=other)
    ca = load_or_create_ca(other, network.id, second.name)
    entry = network.roster.member(second.name)
    network.admit(entry.model_copy(update={"ca": ca.certificate}))
    served.follow_roster()
    user = network.orchestrator
    peer = Peer(network.id, "run_host", user.name)
    store_client(user.home, "run_host", ca.issue(client_public_key(user.home), peer, now_ms()))
    channel = served.channel(user.client("run_host"))  # a new CA is honoured without a restart
    stub = node_pb2_grpc.NodeServiceStub(channel)
    await stub.DescribeNode(node_pb2.DescribeNodeRequest(), timeout=EVENTUALLY)
    work = stub.Work()
    await work.read()
    network.revoke(second.name)
    served.follow_roster()
    error = await refusal(work.read())
    assert isinstance(error, Forbidden) and "CA" in error.message
    error = await refusal(stub.DescribeNode(node_pb2.DescribeNodeRequest(), timeout=EVENTUALLY))
    assert isinstance(error, Forbidden | NodeUnreachable)


async def test_a_renewed_client_certificate_is_shown_by_the_next_rpc_and_open_streams_go_on(served: Served) -> None:
    network, user = served.network, served.network.orchestrator
    channel = served.channel(user.client("run_host"))
    stub = node_pb2_grpc.NodeServiceStub(channel)
    work = stub.Work()
    await work.read()
    for _ in range(3):
        network.certify(user.home, user.name, ["run_host"])
        await stub.DescribeNode(node_pb2.DescribeNodeRequest(), timeout=EVENTUALLY)
    await work.write(node_pb2.DispatcherMessage())
    assert await work.read() is not grpc.aio.EOF
    network.certify(user.home, user.name, ["run_host"], hours=1, at_ms=now_ms() - 2 * 3_600_000)  # this one has ended
    error = await refusal(stub.DescribeNode(node_pb2.DescribeNodeRequest(), timeout=EVENTUALLY))
    assert isinstance(error, Unauthenticated | NodeUnreachable), "the new certificate was not shown"
    await work.write(node_pb2.DispatcherMessage())
    assert await work.read() is not grpc.aio.EOF


async def test_a_new_server_certificate_is_shown_to_the_next_connection(served: Served) -> None:
    old = served.pin()
    work = node_pb2_grpc.NodeServiceStub(served.channel(served.network.orchestrator.client("run_host"))).Work()
    await work.read()
    tls = served.tls()
    (served.node.home.network / "server.crt").unlink()
    async with serving_again(served, tls) as server:
        tls.identity = served.node.server()
        assert tls.identity.certificate != old.certificate
        await served.describe(served.network.orchestrator.client("user"), address=server.secure_address)
    await work.write(node_pb2.DispatcherMessage())
    assert await work.read() is not grpc.aio.EOF


@asynccontextmanager
async def serving_again(served: Served, tls: ServerTls) -> AsyncIterator[RpcServer]:
    server = await RpcServer.start(
        "", served.services.register, RpcMetrics(CollectorRegistry()), secure=SecureListener("127.0.0.1:0", tls)
    )
    try:
        yield server
    finally:
        await server.stop(0)


async def test_a_door_asks_for_no_certificate_and_serves_nothing_but_join(tmp_path: Path) -> None:
    async with serving(tmp_path, door=True) as served:
        channel = served.channel(None)
        stub = orchestrator_grpc.OrchestratorServiceStub(channel)
        await stub.Join(orchestrator_pb2.JoinRequest(), timeout=EVENTUALLY)
        assert served.services.seen == [None]
        calls: list[Callable[[], Awaitable[Any]]] = [
            lambda: stub.ListNodes(orchestrator_pb2.ListNodesRequest(), timeout=EVENTUALLY),
            lambda: node_pb2_grpc.NodeServiceStub(channel).DescribeNode(node_pb2.DescribeNodeRequest()),
            lambda: node_pb2_grpc.NodeServiceStub(channel).Work().read(),
            lambda: health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest()),
        ]
        for call in calls:
            error = await refusal(call())
            assert isinstance(error, Unauthenticated) and "not served at the door" in error.message
        large = orchestrator_pb2.JoinRequest(label="x" * (1 << 20))  # is never read whole: many would fill the memory
        with pytest.raises(grpc.aio.AioRpcError, match="larger than max"):
            await stub.Join(large, timeout=EVENTUALLY)
        assert served.services.seen == [None]
        # A member's certificate does not open it further.
        error = await refusal(served.describe(served.network.orchestrator.client("user")))
        assert isinstance(error, Unauthenticated)


async def test_a_local_caller_is_the_machines_own_and_asked_for_nothing(tmp_path: Path) -> None:
    network = MadeNetwork(tmp_path)
    made = Served(network, network.join("node", "node"))
    server = await RpcServer.start(
        f"unix:{tmp_path}/s", made.services.register, RpcMetrics(made.registry),
        secure=SecureListener("127.0.0.1:0", made.tls()),
    )  # fmt: skip
    made.server = server
    async with open_channel(server.address) as channel:
        await node_pb2_grpc.NodeServiceStub(channel).Drain(node_pb2.DrainRequest())
    await made.describe(network.orchestrator.client("user"))
    assert isinstance(
        await refusal(
            node_pb2_grpc.NodeServiceStub(made.channel(network.orchestrator.client("user"))).Drain(
                node_pb2.DrainRequest()
            )
        ),
        Forbidden,
    )
    for channel in made.channels:
        await channel.close()
    await server.stop(0)


async def test_a_certificate_is_fetched_only_where_it_is_the_expected_one(served: Served, tmp_path: Path) -> None:
    pinned = served.pin().certificate
    assert await fetch_certificate(served.server.secure_address, certificate_hash(pinned)) == pinned
    with pytest.raises(Unauthenticated, match="another certificate"):
        await fetch_certificate(served.server.secure_address, bytes(32))

    async def slam(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with await asyncio.start_server(slam, "127.0.0.1", 0) as plain:
        port = plain.sockets[0].getsockname()[1]
        with pytest.raises(NodeUnreachable, match="does not answer with TLS"):
            await fetch_certificate(f"127.0.0.1:{port}", bytes(32))
    with pytest.raises(NodeUnreachable):
        await fetch_certificate(f"unix:{tmp_path}/nobody", bytes(32))
