"""Attached nodes are reached as any others: through an orchestrator that copies bytes."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from dim_pipelines.domain.roster import Limits
from dim_pipelines.errors import NodeBusy, NodeUnreachable
from dim_pipelines.node import attachment as attachments
from dim_pipelines.orchestrator import link as links

ECHO = "/test.Echo/Echo"
FETCH = "/test.Echo/Fetch"


async def until(condition: Callable[[], object], timeout_s: float = 60.0) -> None:
    """Wait for what nobody announces."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - it watches what sets no event
            await asyncio.sleep(0.01)


async def echo(channel: grpc.aio.Channel, *messages: bytes) -> list[bytes]:
    call: Any = channel.stream_stream(ECHO)(None, timeout=60)
    answers = []
    for message in messages:
        await call.write(message)
        answers.append(await call.read())
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
    return answers


@asynccontextmanager
async def tcp(
    serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any],
) -> AsyncIterator[str]:
    """Run a plain server where a node's tunnels may end, so that single bytes can be watched."""

    async def each(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(OSError):  # the other side has gone, which is what some tests do
                await serve(reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_server(each, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


async def dial(tunnel: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_unix_connection(tunnel.address.removeprefix("unix:"))


async def gone(reader: asyncio.StreamReader) -> bytes:
    """Read to the end, however the connection ends."""
    try:
        return await asyncio.wait_for(reader.read(), 60)
    except ConnectionError:
        return b""


async def test_a_node_that_only_dials_out_is_called_through_a_tunnel(stage: Any) -> None:
    orchestrator = await stage.orchestrator()
    node = await stage.attached(await stage.node())
    caller = stage.member("run_host")
    tunnel = await stage.tunnel(orchestrator, node.name, caller)
    channel = stage.channel(tunnel, node.pin, caller)
    assert await echo(channel, b"hello", bytes(3 << 20), b"") == [b"hello", bytes(3 << 20), b""]
    assert orchestrator.attached == [node.name] and not orchestrator.detached
    assert tunnel.moved.received > 3 << 20 and node.attachment.moved.received > 3 << 20
    state = node.attachment.state
    assert (state.orchestrator, state.label, state.tunnels, state.error) == (orchestrator.name, "first", 1, "")
    await channel.close(None)
    await until(lambda: not node.attachment.state.tunnels)
    await until(lambda: orchestrator.registry.get_sample_value("dim_link_tunnels") == 0)
    assert orchestrator.registry.get_sample_value("dim_link_bytes_total", {"direction": "in"}) > 3 << 20
    assert orchestrator.registry.get_sample_value("dim_link_attached_nodes") == 1


async def test_the_orchestrator_that_relays_reads_nothing(stage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = bytearray()
    check = links.chunk_data

    def look(raw: bytes) -> Any:
        seen.extend(raw)
        return check(raw)

    monkeypatch.setattr(links, "chunk_data", look)
    orchestrator = await stage.orchestrator()
    node = await stage.attached(await stage.node())
    caller = stage.member("run_host")
    channel = stage.channel(await stage.tunnel(orchestrator, node.name, caller), node.pin, caller)
    secret = b"a row of somebody's table" * 4
    assert await echo(channel, secret) == [secret]
    assert len(seen) > 2 * len(secret) and secret[:25] not in seen and b"test.Echo" not in seen


async def test_each_half_is_closed_by_itself(stage: Any) -> None:
    async def answer_at_the_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        data = await reader.read()  # returns when the caller has closed its half
        writer.write(b"%d bytes" % len(data))
        await writer.drain()

    orchestrator = await stage.orchestrator()
    async with tcp(answer_at_the_end) as served:
        node = await stage.attached(await stage.node(serves=served))
        tunnel = await stage.tunnel(orchestrator, node.name, stage.member("run_host"))
        reader, writer = await dial(tunnel)
        writer.write(bytes(1_000_000))
        writer.write_eof()
        assert await gone(reader) == b"1000000 bytes"
        writer.close()
        await until(lambda: not node.attachment.state.tunnels)
        assert tunnel.error is None and tunnel.moved.sent == 1_000_000
        ended = {"method": "Connect", "code": "done"}
        await until(lambda: orchestrator.registry.get_sample_value("dim_link_streams_ended_total", ended) == 1)


@pytest.mark.parametrize("who", ["caller", "node"])
async def test_an_end_that_breaks_off_breaks_the_other(stage: Any, who: str) -> None:
    far: asyncio.Future[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Future()
    end = asyncio.Event()

    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far.set_result((reader, writer))
        await end.wait()

    orchestrator = await stage.orchestrator()
    async with tcp(hold) as served:
        node = await stage.attached(await stage.node(serves=served))
        tunnel = await stage.tunnel(orchestrator, node.name, stage.member("run_host"))
        reader, writer = await dial(tunnel)
        writer.write(b"x")
        far_reader, far_writer = await far
        assert await far_reader.read(1) == b"x"
        if who == "caller":
            await tunnel.close()
            assert await gone(far_reader) == b""
        else:
            far_writer.transport.abort()
            assert await gone(reader) == b""
        end.set()
        writer.close()
        await until(lambda: not node.attachment.state.tunnels)
        await until(lambda: orchestrator.registry.get_sample_value("dim_link_tunnels") == 0)


@pytest.mark.parametrize("flooder", ["caller", "node"])
async def test_a_flood_that_nobody_reads_is_held_back_and_others_go_on(
    stage: Any, flooder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Back-pressure reaches the writer, memory stays bounded, and another tunnel of the same node answers."""
    monkeypatch.setattr(attachments, "SILENT_S", 3600.0)  # one loop runs all of this: it may be late, and that is all
    release = asyncio.Event()
    poured = 0

    async def pour(writer: asyncio.StreamWriter) -> None:
        nonlocal poured
        while True:
            writer.write(bytes(1 << 16))
            await writer.drain()
            poured += 1 << 16

    async def far(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        kind = await reader.readexactly(1)
        if kind == b"e":
            writer.write(await reader.read())
            await writer.drain()
        elif flooder == "node":
            await pour(writer)
        else:
            await release.wait()  # and reads nothing

    orchestrator = await stage.orchestrator(clock=lambda: 0.0)
    async with tcp(far) as served:
        node = await stage.attached(await stage.node(serves=served))
        tunnel = await stage.tunnel(orchestrator, node.name, stage.member("run_host"))
        reader, writer = await dial(tunnel)
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(b"f")
        pouring = asyncio.create_task(pour(writer)) if flooder == "caller" else None
        still, before = 0, -1
        async with asyncio.timeout(60):
            while still < 20:  # a second without a byte, once it has begun: it is held back
                await asyncio.sleep(0.05)
                still, before = (still + 1, before) if poured == before > 1 << 20 else (0, poured)
        assert poured < 64 << 20
        for _ in range(3):
            near, other = await dial(tunnel)
            other.write(b"e" + bytes(1 << 20))
            other.write_eof()
            assert await gone(near) == bytes(1 << 20)
            other.close()
        assert node.attachment.attached_to == orchestrator.name
        release.set()
        if pouring:
            pouring.cancel()
            await asyncio.wait([pouring])
        writer.transport.abort()
        await tunnel.close()
        await until(lambda: orchestrator.registry.get_sample_value("dim_link_tunnels") == 0)
        print(f"held back after {poured / 1e6:.1f} MB")


async def test_tunnels_of_a_node_are_capped_as_the_roster_says(stage: Any) -> None:
    orchestrator = await stage.orchestrator()
    member = stage.member("node")
    stage.limits[member.name] = Limits(max_sessions=2)

    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"here")
        await gone(reader)

    async with tcp(hold) as served:
        await stage.attached(await stage.node(serves=served, member=member))
        tunnel = await stage.tunnel(orchestrator, member.name, stage.member("run_host"))
        held = [await dial(tunnel) for _ in range(2)]
        for reader, _ in held:
            assert await reader.readexactly(4) == b"here"
        refused, writer = await dial(tunnel)
        assert await gone(refused) == b""
        assert isinstance(tunnel.error, NodeBusy) and "has 2 tunnels, its limit" in tunnel.error.message
        writer.close()
        held[0][1].close()
        await until(lambda: orchestrator.registry.get_sample_value("dim_link_tunnels") == 1)
        again, writer = await dial(tunnel)
        assert await again.readexactly(4) == b"here"
        for each in (writer, held[1][1]):
            each.close()


async def test_a_node_that_is_not_there_is_said_to_be_elsewhere(stage: Any) -> None:
    orchestrator = await stage.orchestrator()
    stranger, caller = stage.member("node"), stage.member("run_host")
    tunnel = await stage.tunnel(orchestrator, stranger.name, caller)
    reader, writer = await dial(tunnel)
    assert await gone(reader) == b""
    writer.close()
    assert isinstance(tunnel.error, NodeUnreachable) and "is not attached here" in tunnel.error.message


async def test_a_node_that_does_not_dial_back_costs_its_caller_some_seconds_only(
    stage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    orchestrator = await stage.orchestrator()
    node = await stage.attached(await stage.node(max_tunnels=0))
    monkeypatch.setattr(links, "FIRST_S", 2.0)
    tunnel = await stage.tunnel(orchestrator, node.name, stage.member("run_host"))
    reader, writer = await dial(tunnel)
    assert await gone(reader) == b""
    writer.close()
    assert tunnel.error is not None and "did not dial back" in tunnel.error.message
    assert node.attachment.attached_to == orchestrator.name


async def test_a_tunnel_that_stands_still_is_ended(stage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "_TICK_S", 0.05)
    now = [0.0]
    orchestrator = await stage.orchestrator(clock=lambda: now[0])

    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"here")
        await gone(reader)

    async with tcp(hold) as served:
        node = await stage.attached(await stage.node(serves=served))
        tunnel = await stage.tunnel(orchestrator, node.name, stage.member("run_host"))
        reader, writer = await dial(tunnel)
        assert await reader.readexactly(4) == b"here"
        now[0] = 91.0
        assert await gone(reader) == b""
        writer.close()
        assert tunnel.error is not None and "nothing moved for 90 s" in tunnel.error.message


async def test_a_revoked_caller_loses_its_tunnels_and_a_revoked_node_its_attachment(stage: Any) -> None:
    orchestrator = await stage.orchestrator()
    node, caller = await stage.attached(await stage.node()), stage.member("run_host")
    tunnel = await stage.tunnel(orchestrator, node.name, caller)
    call: Any = stage.channel(tunnel, node.pin, caller).stream_stream(ECHO)(None)
    await call.write(b"x")
    assert await call.read() == b"x"
    stage.admission.revoke(caller.name)
    with pytest.raises(grpc.aio.AioRpcError):
        await asyncio.wait_for(call.read(), 60)
    await until(lambda: orchestrator.registry.get_sample_value("dim_link_tunnels") == 0)
    assert not orchestrator.detached
    stage.admission.revoke(node.name)
    await until(lambda: orchestrator.detached == [node.name])
    await until(lambda: "revoked: it lied" in node.attachment.state.error)
    assert orchestrator.servicer.attached == frozenset()


async def test_a_lost_orchestrator_means_another_one(stage: Any) -> None:
    first = await stage.orchestrator("first")
    second: list[Any] = []
    node = await stage.attached(await stage.node(at=lambda: [first, *second]))
    second.append(await stage.orchestrator("second"))
    begun = time.monotonic()
    await first.stop()
    await until(lambda: node.attachment.attached_to == second[0].name)
    print(f"attached to another after {time.monotonic() - begun:.2f} s")
    assert node.changes == [first.name, "", second[0].name]
    caller = stage.member("run_host")
    channel = stage.channel(await stage.tunnel(second[0], node.name, caller), node.pin, caller)
    assert await echo(channel, b"again") == [b"again"]


async def test_a_node_survives_the_restart_of_its_only_orchestrator(stage: Any) -> None:
    member, listen = stage.member("orchestrator"), f"unix:{stage.folder}/s"  # nobody else can take its place meanwhile
    first = await stage.orchestrator(member=member, listen=listen)
    node, caller = await stage.attached(await stage.node()), stage.member("run_host")
    tunnel = await stage.tunnel(first, node.name, caller)
    channel = stage.channel(tunnel, node.pin, caller)
    assert await echo(channel, b"before") == [b"before"]
    await first.stop()
    await until(lambda: not node.attachment.attached_to)
    stage.orchestrators.clear()
    await stage.orchestrator(member=member, listen=listen)
    await until(lambda: node.attachment.attached_to)
    async with asyncio.timeout(60):  # the same channel and socket: they connect anew by themselves
        while True:
            try:
                assert await echo(channel, b"after") == [b"after"]
                break
            except grpc.aio.AioRpcError:
                await asyncio.sleep(0.05)


async def test_an_orchestrator_that_falls_silent_is_left(stage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It holds the connection and says nothing, as a stopped process or a cut cable does."""
    monkeypatch.setattr(attachments, "SILENT_S", 1.0)
    monkeypatch.setattr(links, "PULSE_S", 3600.0)
    first = await stage.orchestrator("first")
    second: list[Any] = []
    node = await stage.attached(await stage.node(at=lambda: [first, *second]))
    monkeypatch.setattr(links, "PULSE_S", 0.2)
    second.append(await stage.orchestrator("second"))
    await until(lambda: node.attachment.attached_to == second[0].name)
    assert node.changes[:2] == [first.name, ""]
    await until(lambda: node.name in first.detached)


async def test_a_dead_orchestrator_in_the_roster_does_not_delay_the_others(stage: Any) -> None:
    """One takes connections and never speaks: it is not waited for before the next is asked."""

    async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await gone(reader)

    living = await stage.orchestrator()
    async with tcp(mute) as address:
        dead = type(living)("k" + "0" * 61, "dead", (address,), living.certificate, *[None] * 5)  # type: ignore[arg-type]
        asked = [dead] * 3
        node = await stage.attached(await stage.node(at=lambda: [*asked, living]))
        assert node.attachment.attached_to == living.name
        await node.stop()
