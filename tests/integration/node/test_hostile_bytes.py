"""Whatever bytes come in on whatever RPC: the daemon answers something and goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dim_pipelines.domain.cid import RAW, Cid
from dim_pipelines.node.process import NodeProcess
from dim_pipelines.wire.channel import open_channel
from dim_pipelines.wire.v1 import blocks_pb2, node_pb2, node_pb2_grpc

METHODS = {
    "/dim.v1.NodeService/Work": (True, True),
    "/dim.v1.NodeService/DescribeNode": (False, False),
    "/dim.v1.NodeService/WarmModel": (False, True),
    "/dim.v1.BlockService/Have": (False, False),
    "/dim.v1.BlockService/Get": (False, True),
    "/dim.v1.BlockService/Put": (True, False),
}
several = settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])

cids = st.one_of(st.binary(max_size=40), st.binary(max_size=8).map(lambda data: bytes(Cid.of(RAW, data))))
numbers = st.integers(0, 3) | st.integers(0, 2**32 - 1)
tasks = st.builds(
    node_pb2.Task,
    shard=numbers,
    step=numbers,
    inputs=st.lists(cids, max_size=2),
    input_rows=numbers,
    attempt=numbers,
    deadline_ms=st.integers(0, 2**64 - 1),
)
messages = st.one_of(
    st.builds(
        lambda open_: node_pb2.DispatcherMessage(open=open_),
        st.builds(node_pb2.Open, versions=st.lists(numbers, max_size=3), grant=st.binary(max_size=60), plan_cid=cids),
    ),
    st.lists(tasks, max_size=4).map(lambda items: node_pb2.DispatcherMessage(tasks=node_pb2.Tasks(tasks=items))),
    st.lists(numbers, max_size=3).map(lambda items: node_pb2.DispatcherMessage(cancel=node_pb2.Cancel(shards=items))),
    st.just(node_pb2.DispatcherMessage(keep_alive=node_pb2.KeepAlive())),
    st.just(node_pb2.DispatcherMessage()),
)
blocks = st.builds(blocks_pb2.Block, cid=cids, data=st.binary(max_size=64))


async def still_there(node: NodeProcess, channel: grpc.aio.Channel) -> None:
    described = await node_pb2_grpc.NodeServiceStub(channel).DescribeNode(node_pb2.DescribeNodeRequest(), timeout=10)
    assert described.name == node.name and node.alive


async def call(channel: grpc.aio.Channel, method: str, parts: list[bytes]) -> None:
    """Send raw bytes and take whatever comes back."""
    streams_in, streams_out = METHODS[method]

    async def sending() -> AsyncIterator[bytes]:
        for part in parts:
            yield part

    kind: Callable[..., Any] = {
        (True, True): channel.stream_stream,
        (True, False): channel.stream_unary,
        (False, True): channel.unary_stream,
        (False, False): channel.unary_unary,
    }[streams_in, streams_out]
    made = kind(method)(sending() if streams_in else parts[0], timeout=10)
    try:
        if streams_out:
            async for _ in made:
                pass
        else:
            await made
    except grpc.aio.AioRpcError as error:
        assert error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED
        assert "Traceback" not in (error.details() or "")


@several
@given(st.sampled_from(sorted(METHODS)), st.lists(st.binary(max_size=80), min_size=1, max_size=3))
async def test_raw_bytes_on_every_method(shared_node: NodeProcess, method: str, parts: list[bytes]) -> None:
    channel = open_channel(shared_node.address)
    await call(channel, method, parts)
    await still_there(shared_node, channel)
    await channel.close()


@several
@given(st.lists(messages, min_size=1, max_size=4))
async def test_well_formed_nonsense_on_the_work_stream(
    shared_node: NodeProcess, sent: list[node_pb2.DispatcherMessage]
) -> None:
    channel = open_channel(shared_node.address)
    await call(channel, "/dim.v1.NodeService/Work", [message.SerializeToString() for message in sent])
    await still_there(shared_node, channel)
    await channel.close()


@several
@given(st.lists(st.lists(blocks, max_size=3), min_size=1, max_size=3))
async def test_nonsense_in_put(shared_node: NodeProcess, sent: list[list[blocks_pb2.Block]]) -> None:
    channel = open_channel(shared_node.address)
    parts = [blocks_pb2.Blocks(blocks=group).SerializeToString() for group in sent]
    await call(channel, "/dim.v1.BlockService/Put", parts)
    await still_there(shared_node, channel)
    await channel.close()


@pytest.mark.parametrize("attempt", [0, 1, 2**32 - 1])
async def test_nonsense_in_an_open_session_ends_that_session_only(
    shared_node: NodeProcess, client: Any, attempt: int
) -> None:
    plan = await client.put_echo_plan()
    broken = await client.open(plan, batch=f"broken-{attempt}")
    fine = await client.open(plan, batch=f"fine-{attempt}")
    wrong = node_pb2.Task(shard=1, inputs=[b"no cid"], attempt=attempt)
    await broken.call.write(node_pb2.DispatcherMessage(tasks=node_pb2.Tasks(tasks=[wrong])))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await broken.until(lambda stream: stream.ended)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    await fine.send(await client.put_shards(1))
    await fine.until(lambda stream: stream.outcomes)
    await fine.end()


async def test_a_stream_that_says_nothing_is_not_kept_for_ever(client: Any) -> None:
    call = client.node.Work()
    await call.done_writing()
    async with asyncio.timeout(60):
        assert await call.read() is grpc.aio.EOF
