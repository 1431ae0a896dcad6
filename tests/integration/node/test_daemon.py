"""A real daemon: sessions, kills, drains, refusals, and what it shows of itself."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from dim_pipelines.content.shards import decode_shard
from dim_pipelines.content.store import Block
from dim_pipelines.domain.cid import DAG_CBOR, RAW, Cid
from dim_pipelines.domain.events import Task, TaskDone, TaskFailed
from dim_pipelines.errors import ConfigurationError, ContentMismatch, ContentNotFound, InputError, QuotaExceeded
from dim_pipelines.node.process import NodeProcess
from dim_pipelines.wire.channel import open_channel
from dim_pipelines.wire.status import from_rpc_error
from dim_pipelines.wire.v1 import blocks_pb2, node_pb2

Start = Callable[..., tuple[NodeProcess, Any]]


async def test_tasks_are_computed_and_their_outputs_are_in_the_block_service(client: Any) -> None:
    stream = await client.open(await client.put_echo_plan(), batch="plain")
    assert stream.opened.node == "shared" and stream.opened.numerics.startswith("echo-1/")
    tasks = await client.put_shards(50)
    await stream.send(tasks)
    await stream.until(lambda stream: len(stream.outcomes) == 50)
    done = {item.shard: item for item in stream.outcomes if isinstance(item, TaskDone)}
    assert len(done) == 50 and all(item.rows == 4 and not item.row_errors for item in done.values())
    output = decode_shard(await client.get(done[7].output))
    given = decode_shard(await client.get(tasks[7].inputs[0]))
    assert output.schema.names == ["id", "y"] and output.column("id").to_pylist() == [28, 29, 30, 31]
    assert output.column("y").to_pylist() == given.column("x").to_pylist()
    assert done[7].usage.bytes_out == len(await client.get(done[7].output)) and done[7].usage.rows == 4
    await stream.end()
    assert stream.session.credit >= 2


async def test_what_cannot_be_computed_fails_alone(client: Any) -> None:
    stream = await client.open(await client.put_echo_plan(), batch="bad")
    good = await client.put_shards(1)
    rubbish = Block(Cid.of(RAW, b"rubbish"), b"rubbish")
    await client.put([rubbish])
    missing = Cid.of(RAW, b"nowhere")
    tasks = [
        good[0],
        Task(1, 0, (rubbish.cid,), 4),
        Task(2, 0, (missing,), 4),
        Task(3, 7, good[0].inputs, 4),
        Task(4, 0, (missing, missing), 4),
        Task(5, 0, good[0].inputs, 4, 1, int(time.time() * 1000) - 1),
    ]
    await stream.send(tasks)
    await stream.until(lambda stream: len(stream.outcomes) == 6)
    codes = {item.shard: item.code for item in stream.outcomes if isinstance(item, TaskFailed)}
    assert codes == {1: "input", 2: "content_not_found", 3: "protocol", 4: "input", 5: "engine_failed"}
    assert stream.keep_alives >= 1


async def test_a_killed_engine_process_fails_one_attempt_and_comes_back(
    start_node: Start, children: Callable[[int], list[int]]
) -> None:
    node, client = start_node()
    stream = await client.open(await client.put_echo_plan(parameters={"sleep_ms": 1500}), batch="killed")
    tasks = await client.put_shards(3)
    await stream.send(tasks[:2])
    await asyncio.sleep(0.5)
    (engine,) = children(node.pid)
    os.kill(engine, signal.SIGKILL)
    await stream.until(lambda stream: len(stream.outcomes) == 2)
    first, second = sorted(stream.outcomes, key=lambda item: item.shard)
    assert isinstance(first, TaskFailed) and first.code == "engine_failed" and first.retryable
    assert "SIGKILL" in first.message and isinstance(second, TaskDone)
    await stream.send([Task(0, 0, tasks[0].inputs, 4, 2)])
    await stream.until(lambda stream: len(stream.outcomes) == 3)
    assert isinstance(stream.outcomes[-1], TaskDone) and node.alive


async def test_a_task_that_takes_too_long_is_ended(start_node: Start) -> None:
    node, client = start_node(options=["--task-timeout", "0.5"])
    stream = await client.open(await client.put_echo_plan(parameters={"sleep_ms": 30_000}), batch="slow")
    await stream.send((await client.put_shards(1))[:1])
    await stream.until(lambda stream: stream.outcomes)
    assert stream.outcomes[0].code == "engine_failed" and "longer than 0.5 s" in stream.outcomes[0].message
    assert node.alive


async def test_cancel_is_answered_at_once_and_interrupts_the_engine(client: Any) -> None:
    stream = await client.open(await client.put_echo_plan(parameters={"sleep_ms": 600_000}), batch="cancel")
    await stream.send(await client.put_shards(2))
    await asyncio.sleep(0.2)
    await stream.call.write(stream.session.cancel())
    await stream.until(lambda stream: len(stream.outcomes) == 2)
    assert {item.code for item in stream.outcomes} == {"cancelled"}
    await stream.end()
    quick = await client.open(await client.put_echo_plan(), batch="after")
    await quick.send(await client.put_shards(1))
    await quick.until(lambda stream: stream.outcomes)
    assert isinstance(quick.outcomes[0], TaskDone)


async def test_epochs_fence_for_good_and_cut_older_sessions(start_node: Start, tmp_path: Path) -> None:
    node, client = start_node(home=tmp_path / "same")
    plan = await client.put_echo_plan()
    old = await client.open(plan, batch="b", epoch=3)
    new = await client.open(plan, batch="b", epoch=4)
    await old.until(lambda stream: stream.refused)
    assert old.refused.code == "stale_epoch" and new.opened
    again = await client.open(plan, batch="b", epoch=3)
    assert again.refused.code == "stale_epoch" and "epoch 4" in again.refused.reason
    other = await client.open(plan, batch="other", epoch=1)
    assert other.opened
    await client.close()
    assert node.kill() == -signal.SIGKILL
    _, client = start_node(home=tmp_path / "same")
    assert (await client.open(plan, batch="b", epoch=3)).refused.code == "stale_epoch"
    assert (await client.open(plan, batch="b", epoch=4)).opened


async def test_strangers_and_impossible_plans_are_refused(client: Any) -> None:
    plan = await client.put_echo_plan()
    stranger = await client.open(plan, batch="s", key=Ed25519PrivateKey.generate())
    assert stranger.refused.code == "forbidden" and "does not trust" in stranger.refused.reason
    over = await client.open(plan, batch="s", not_after_ms=1)
    assert over.refused.code == "forbidden" and "ended" in over.refused.reason
    missing = await client.open(Cid.of(DAG_CBOR, b"?"), batch="s")
    assert missing.refused.code == "content_not_found"
    elsewhere = await client.open(await client.put_echo_plan(numerics="torch-0/cpu"), batch="s")
    assert elsewhere.refused.code == "node_refused" and "numerics class" in elsewhere.refused.reason
    large = await client.open(await client.put_echo_plan(batch_rows=5000), batch="s")
    assert large.refused.code == "input"
    model, _ = await client.put_model({"weights": b"x"})
    nothing = await client.open(await client.put_plan(model), batch="s")
    assert nothing.refused.code == "input" and "dim-model.json" in nothing.refused.reason


async def test_a_session_ends_with_its_grant(client: Any) -> None:
    plan = await client.put_echo_plan()
    stream = await client.open(plan, batch="short", not_after_ms=int(time.time() * 1000) + 700, weight=-3)
    assert stream.opened
    await stream.until(lambda stream: stream.refused)
    assert stream.refused.code == "node_busy" and "open again with a fresh one" in stream.refused.reason


async def test_a_model_that_does_not_fit_is_refused_with_need_and_free(start_node: Start) -> None:
    _, client = start_node(options=["--device-bytes", "100000"])
    from_shared = {"dim-model.json": _echo_json(), "weights": bytes(200_000)}
    model, _ = await client.put_model(from_shared)
    stream = await client.open(await client.put_plan(model), batch="large")
    assert stream.refused.code == "node_refused" and stream.refused.free == 100_000
    assert stream.refused.need > 200_000
    small = await client.open(await client.put_echo_plan(), batch="small")
    assert small.opened


async def test_sigterm_finishes_what_runs_and_hands_back_what_waits(start_node: Start) -> None:
    node, client = start_node()
    stream = await client.open(await client.put_echo_plan(parameters={"sleep_ms": 1500}), batch="drain")
    await stream.send(await client.put_shards(2))
    await asyncio.sleep(0.5)
    node.terminate()
    await stream.until(lambda stream: stream.refused)
    by_shard = {item.shard: item for item in stream.outcomes}
    assert isinstance(by_shard[0], TaskDone)
    assert isinstance(by_shard[1], TaskFailed) and by_shard[1].handed_back and by_shard[1].code == "node_busy"
    assert stream.refused.code == "node_busy"
    assert await asyncio.to_thread(node.stop) == 0
    assert not (node.home / "node" / "node.json").exists()


async def test_a_second_signal_ends_it_at_once(start_node: Start, children: Callable[[int], list[int]]) -> None:
    node, client = start_node()
    stream = await client.open(await client.put_echo_plan(parameters={"sleep_ms": 20_000}), batch="second")
    await stream.send((await client.put_shards(1))[:1])
    engines = children(node.pid)
    node.terminate()
    await stream.until(lambda stream: stream.session.silent_for(time.monotonic()) >= 0)
    await asyncio.sleep(0.3)
    assert node.alive
    node.terminate()
    code = await asyncio.to_thread(node.stop)
    assert code == 130
    assert engines and await asyncio.to_thread(gone, engines)


async def test_drain_by_rpc_describes_itself_as_draining(start_node: Start) -> None:
    node, client = start_node()
    plan = await client.put_echo_plan()
    reply = await client.node.Drain(node_pb2.DrainRequest(timeout_ms=2000))
    assert (reply.finished, reply.handed_back) == (0, 0)
    described = await client.node.DescribeNode(node_pb2.DescribeNodeRequest())
    assert described.draining and described.name == "n0" and described.devices[0].id == "cpu"
    assert (await client.open(plan, batch="late")).refused.code == "node_busy"
    assert node.alive


async def test_two_owners_share_a_device(client: Any) -> None:
    plan = await client.put_echo_plan(parameters={"sleep_ms": 20})
    one = await client.open(plan, batch="one", owner="ann")
    two = await client.open(plan, batch="two", owner="bob")
    tasks = await client.put_shards(24)
    sending = [asyncio.create_task(stream.send(tasks)) for stream in (one, two)]
    await asyncio.gather(*(stream.until(lambda stream: len(stream.outcomes) >= 8) for stream in (one, two)))
    assert abs(len(one.outcomes) - len(two.outcomes)) <= 8
    for task in sending:
        task.cancel()


async def test_health_reflection_metrics_and_node_json(shared_node: NodeProcess, client: Any) -> None:
    health = health_pb2_grpc.HealthStub(client.channel)
    for service in ("", "dim.v1.NodeService", "dim.v1.BlockService"):
        reply = await health.Check(health_pb2.HealthCheckRequest(service=service))
        assert reply.status == health_pb2.HealthCheckResponse.SERVING

    async def ask() -> Any:
        yield reflection_pb2.ServerReflectionRequest(list_services="")

    call = reflection_pb2_grpc.ServerReflectionStub(client.channel).ServerReflectionInfo(ask())
    names = {item.name async for answer in call for item in answer.list_services_response.service}
    assert {"dim.v1.NodeService", "dim.v1.BlockService", "grpc.health.v1.Health"} <= names
    await client.node.DescribeNode(node_pb2.DescribeNodeRequest())
    assert shared_node.metrics.startswith("http://127.0.0.1:")

    def read() -> str:
        with urllib.request.urlopen(shared_node.metrics, timeout=5) as answer:
            return str(answer.read().decode())

    text = await asyncio.to_thread(read)
    assert 'dim_rpc_requests_total{code="OK",method="DescribeNode",service="dim.v1.NodeService"}' in text
    assert "dim_node_engine_starts_total" in text and "dim_node_tasks_queued" in text
    announced = json.loads((shared_node.home / "node" / "node.json").read_text())
    assert announced == {
        "name": "shared",
        "address": shared_node.address,
        "pid": shared_node.pid,
        "key": shared_node.key,
        "metrics": shared_node.metrics,
        **dict.fromkeys(("secure", "network", "id", "reach"), ""),
    }
    socket_path = Path(shared_node.address.removeprefix("unix:"))
    assert (await asyncio.to_thread(socket_path.stat)).st_mode & 0o777 == 0o600


async def test_blocks_are_verified_and_bounded(client: Any) -> None:
    data = bytes(100)
    good = blocks_pb2.Block(cid=Cid.of(RAW, data), data=data)
    forged = blocks_pb2.Block(cid=Cid.of(RAW, b"else"), data=data)

    async def put(*messages: blocks_pb2.Blocks) -> Any:
        async def stream() -> Any:
            for message in messages:
                yield message

        return await client.blocks.Put(stream())

    reply = await put(blocks_pb2.Blocks(blocks=[good]))
    assert (reply.blocks, reply.bytes) == (1, 100)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await put(blocks_pb2.Blocks(blocks=[forged]))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert isinstance(from_rpc_error(caught.value), ContentMismatch)
    large = bytes((1 << 20) + 1)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await put(blocks_pb2.Blocks(blocks=[blocks_pb2.Block(cid=Cid.of(RAW, large), data=large)]))
    assert isinstance(from_rpc_error(caught.value), InputError)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await client.blocks.Have(blocks_pb2.HaveRequest(cids=[good.cid] * 100_001))
    assert isinstance(from_rpc_error(caught.value), QuotaExceeded)
    reply = await client.blocks.Have(blocks_pb2.HaveRequest(cids=[good.cid, Cid.of(RAW, b"else")]))
    assert list(reply.cids) == [good.cid]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        [message async for message in client.blocks.Get(blocks_pb2.GetRequest(cids=[good.cid, Cid.of(RAW, b"else")]))]
    assert isinstance(from_rpc_error(caught.value), ContentNotFound)
    many = [bytes([number]) * (1 << 20) for number in range(9)]
    for item in many:
        await client.put([Block(Cid.of(RAW, item), item)])
    call = client.blocks.Get(blocks_pb2.GetRequest(cids=[Cid.of(RAW, item) for item in many]))
    groups = [[block.data for block in message.blocks] async for message in call]
    assert [data for group in groups for data in group] == many and max(map(len, groups)) == 4


async def test_warming_a_model_tells_how_far_it_is(client: Any) -> None:
    model, _ = await client.put_model({"dim-model.json": _echo_json(), "weights": b"warm"})
    call = client.node.WarmModel(node_pb2.WarmModelRequest(model=model, batch_rows=4))
    stages = [message.stage async for message in call]
    assert list(dict.fromkeys(stages)) == ["verify", "fetch", "load", "warm", "done"]


def test_addresses_and_homes_in_use_are_refused(shared_node: NodeProcess, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="in use"):
        NodeProcess.start(tmp_path, name="x", listen=shared_node.address, engines=["echo"])
    with pytest.raises(ConfigurationError, match=r"runs in .* already"):
        NodeProcess.start(shared_node.home, name="x", engines=["echo"])
    with pytest.raises(ConfigurationError, match="not loopback") as caught:
        NodeProcess.start(tmp_path, name="x", listen="0.0.0.0:7000", engines=["echo"])
    assert "TLS comes with a network" in caught.value.hint
    with pytest.raises(ConfigurationError, match="no engine can be imported"):
        NodeProcess.start(tmp_path, name="x", engines=["nothing"])


def test_a_port_in_use_is_one_clear_line(start_node: Start, tmp_path: Path) -> None:
    node, _ = start_node(listen="127.0.0.1:0")
    with pytest.raises(ConfigurationError, match=r"cannot listen on 127\.0\.0\.1:\d+: Address already in use"):
        NodeProcess.start(tmp_path / "other", name="x", listen=node.address, engines=["echo"])


def test_a_daemon_ends_when_its_parent_is_killed(tmp_path: Path, children: Callable[[int], list[int]]) -> None:
    script = textwrap.dedent(
        f"""
        import pathlib, time
        from dim_pipelines.node.process import NodeProcess
        node = NodeProcess.start(pathlib.Path({str(tmp_path)!r}), name="x", engines=["echo"])
        print(node.pid, flush=True)
        time.sleep(60)
        """
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert parent.stdout
    pid = int(parent.stdout.readline())
    engines = children(pid)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert engines and gone([pid, *engines])


def test_the_daemon_is_imported_without_dagster_and_torch() -> None:
    script = textwrap.dedent(
        """
        import sys
        for name in ("dagster", "torch", "pandas"):
            sys.modules[name] = None
        import dim_pipelines.node.daemon
        """
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


async def test_channels_refuse_other_machines() -> None:
    with pytest.raises(ConfigurationError, match="not loopback"):
        open_channel("10.0.0.1:7000")


def gone(pids: list[int]) -> bool:
    """Wait until the processes have ended; one that nobody reaps counts as ended."""

    def runs(pid: int) -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
        except OSError:
            return False

    until = time.monotonic() + 10
    while any(map(runs, pids)) and time.monotonic() < until:
        time.sleep(0.02)
    return not any(map(runs, pids))


def _echo_json() -> bytes:
    value = {
        "v": 1,
        "name": "echo",
        "version": "1",
        "engine": "echo",
        "licence": "MIT",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [8]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [8]}],
    }
    return json.dumps(value).encode()
