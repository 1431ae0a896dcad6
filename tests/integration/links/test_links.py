"""Attached nodes are reached as any others: through an orchestrator that copies bytes."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest

ECHO = "/test.Echo/Echo"


async def echo(channel: grpc.aio.Channel, *messages: bytes) -> list[bytes]:
    call: Any = channel.stream_stream(ECHO)(None, timeout=60)
    answers = []
    for message in messages:
        await call.write(message)
        answers.append(await call.read())
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
    return answers


async def test_a_node_that_only_dials_out_is_called_through_a_tunnel(stage: Any) -> None:
    orchestrator = await stage.orchestrator()
    node = await stage.attached(await stage.node())
    caller = stage.member("run_host")
    tunnel = await stage.tunnel(orchestrator, node.name, caller)
    channel = stage.channel(tunnel, node.pin, caller)
    assert await echo(channel, b"hello", bytes(3 << 20), b"") == [b"hello", bytes(3 << 20), b""]
    assert orchestrator.attached == [node.name] and not orchestrator.detached
    assert tunnel.moved.received > 3 << 20 and node.attachment.moved.received > 3 << 20
