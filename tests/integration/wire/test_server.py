"""A server with the one chain, over a unix socket: errors, deadlines, request ids, metrics, addresses."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry

from dim_pipelines.errors import ConfigurationError, DimError, NodeBusy
from dim_pipelines.telemetry.logging import REQUEST_ID
from dim_pipelines.telemetry.metrics import RpcMetrics
from dim_pipelines.wire import interceptors
from dim_pipelines.wire.channel import open_channel
from dim_pipelines.wire.server import RpcServer
from dim_pipelines.wire.status import REQUEST_KEY, from_rpc_error
from dim_pipelines.wire.v1 import node_pb2, node_pb2_grpc


class Odd(node_pb2_grpc.NodeServiceServicer):
    """Does what `wish` says."""

    wish: Callable[[], Any] = staticmethod(lambda: None)

    async def DescribeNode(self, request: Any, context: Any) -> node_pb2.NodeDescription:
        answer = self.wish()
        if asyncio.iscoroutine(answer):
            await answer
        return node_pb2.NodeDescription(name=REQUEST_ID.get())

    async def WarmModel(self, request: Any, context: Any) -> AsyncIterator[node_pb2.WarmProgress]:
        yield node_pb2.WarmProgress(stage="fetch")
        self.wish()

    async def Work(self, request_iterator: Any, context: Any) -> None:
        await context.write(node_pb2.NodeMessage())
        self.wish()

    async def Drain(self, request: Any, context: Any) -> node_pb2.DrainReply:
        await asyncio.sleep(0.1)
        return node_pb2.DrainReply()


@pytest.fixture
async def odd(tmp_path: Path) -> AsyncIterator[tuple[Odd, Any, CollectorRegistry]]:
    service, registry = Odd(), CollectorRegistry()

    def register(server: grpc.aio.Server) -> Sequence[str]:
        node_pb2_grpc.add_NodeServiceServicer_to_server(service, server)
        return ["dim.v1.NodeService"]

    server = await RpcServer.start(
        f"unix:{tmp_path}/s",
        register,
        RpcMetrics(registry),
        unbounded=frozenset({"/dim.v1.NodeService/Drain"}),
    )
    channel = open_channel(server.address)
    yield service, channel, registry
    await channel.close()
    await server.stop(0)
    assert not await asyncio.to_thread((tmp_path / "s").exists)


def fail(error: Exception) -> Callable[[], None]:
    def wish() -> None:
        raise error

    return wish


async def test_errors_arrive_as_themselves_from_every_kind_of_handler(odd: Any) -> None:
    service, channel, registry = odd
    stub = node_pb2_grpc.NodeServiceStub(channel)
    service.wish = fail(NodeBusy("full", hint="come back — später"))
    arrived: list[DimError] = []
    try:
        await stub.DescribeNode(node_pb2.DescribeNodeRequest(), metadata=((REQUEST_KEY, "mine"),))
    except grpc.aio.AioRpcError as error:
        arrived.append(from_rpc_error(error))
        assert dict(error.trailing_metadata() or ())[REQUEST_KEY] == "mine"
    try:
        async for _ in stub.WarmModel(node_pb2.WarmModelRequest()):
            pass
    except grpc.aio.AioRpcError as error:
        arrived.append(from_rpc_error(error))
    try:
        async for _ in stub.Work():
            pass
    except grpc.aio.AioRpcError as error:
        arrived.append(from_rpc_error(error))
    assert [(type(error), error.message, error.hint) for error in arrived] == [
        (NodeBusy, "full", "come back — später")
    ] * 3
    labels = {"service": "dim.v1.NodeService", "method": "Work", "code": "RESOURCE_EXHAUSTED"}
    assert registry.get_sample_value("dim_rpc_requests_total", labels) == 1
    assert registry.get_sample_value("dim_rpc_open", {"service": "dim.v1.NodeService", "method": "Work"}) == 0


async def test_faults_tell_the_client_an_id_and_nothing_else(odd: Any, caplog: pytest.LogCaptureFixture) -> None:
    service, channel, _ = odd
    service.wish = fail(KeyError("a secret path"))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await node_pb2_grpc.NodeServiceStub(channel).DescribeNode(node_pb2.DescribeNodeRequest())
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert "internal error, request" in (caught.value.details() or "") and "secret" not in str(caught.value)
    assert "a secret path" in caplog.text


async def test_request_ids_are_taken_or_made(odd: Any) -> None:
    _, channel, _ = odd
    stub = node_pb2_grpc.NodeServiceStub(channel)
    named = await stub.DescribeNode(node_pb2.DescribeNodeRequest(), metadata=((REQUEST_KEY, "mine"),))
    made = await stub.DescribeNode(node_pb2.DescribeNodeRequest())
    assert named.name == "mine" and len(made.name) == 32


async def test_unary_calls_without_a_deadline_get_one(odd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    service, channel, _ = odd
    monkeypatch.setattr(interceptors, "UNARY_SECONDS", 0.02)
    service.wish = lambda: asyncio.sleep(30)
    stub = node_pb2_grpc.NodeServiceStub(channel)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.DescribeNode(node_pb2.DescribeNodeRequest())
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await stub.Drain(node_pb2.DrainRequest())


async def test_unknown_methods_are_unimplemented(odd: Any) -> None:
    _, channel, _ = odd
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await channel.unary_unary("/dim.v1.NodeService/Nothing")(b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_health_follows_serving(tmp_path: Path) -> None:
    server = await RpcServer.start(f"unix:{tmp_path}/h", lambda server: ["a.B"], RpcMetrics(CollectorRegistry()))
    channel = open_channel(server.address)
    stub = health_pb2_grpc.HealthStub(channel)
    ask = health_pb2.HealthCheckRequest(service="a.B")
    assert (await stub.Check(ask)).status == health_pb2.HealthCheckResponse.SERVING
    await server.serving(False)
    assert (await stub.Check(ask)).status == health_pb2.HealthCheckResponse.NOT_SERVING
    await channel.close()
    await server.stop(0)


async def test_addresses_in_use_are_named_and_dead_sockets_replaced(tmp_path: Path) -> None:
    async def start(listen: str) -> RpcServer:
        return await RpcServer.start(listen, lambda server: [], RpcMetrics(CollectorRegistry()))

    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "s"))
    server = await start(f"unix:{tmp_path}/s")
    with pytest.raises(ConfigurationError, match="it is in use"):
        await start(server.address)
    await server.stop(0)
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigurationError, match="is no socket"):
        await start(f"unix:{tmp_path}/file")
    tcp = await start("127.0.0.1:0")
    with pytest.raises(ConfigurationError, match="Address already in use"):
        await start(tcp.address)
    await tcp.stop(0)
