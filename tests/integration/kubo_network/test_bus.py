"""Hints through a real private swarm."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dim_pipelines.bus import kubo as module
from dim_pipelines.bus.bus import Hint
from dim_pipelines.bus.kubo import KuboBus
from dim_pipelines.content.kubo_http import KuboHttp
from dim_pipelines.errors import ContentUnavailable

PATIENCE_S = 60.0


@pytest.fixture
def network() -> str:
    return f"k51{os.urandom(8).hex()}"


async def hear(say: Callable[[bytes], Any], hints: AsyncIterator[Hint], body: bytes) -> None:
    """Say something until it is heard; what else comes meanwhile is passed over."""

    async def go_on() -> None:
        while True:
            with contextlib.suppress(ContentUnavailable):
                await say(body)
            await asyncio.sleep(0.2)

    saying = asyncio.create_task(go_on())
    try:
        async with asyncio.timeout(PATIENCE_S):
            while (await anext(hints)).body != body:
                pass
    finally:
        saying.cancel()
        await asyncio.wait([saying])


async def test_hints_cross_the_swarm_to_one_that_only_dials_out_and_back(swarm: Any, network: str) -> None:
    buses = [KuboBus(daemon.address, network, Ed25519PrivateKey.generate()) for daemon in swarm.daemons]
    for sender, listener in ((1, 2), (2, 0), (0, 1)):
        async with buses[listener].subscribe("nodes") as hints:
            await hear(partial(buses[sender].publish, "nodes"), hints, b"%d" % sender)


async def test_a_subscription_survives_the_restart_of_its_kubo(swarm: Any, network: str) -> None:
    a, b = swarm.daemons[:2]
    sender = KuboBus(a.address, network, Ed25519PrivateKey.generate())
    listener = KuboBus(b.address, network, Ed25519PrivateKey.generate())
    async with listener.subscribe("nodes") as hints:
        await hear(partial(sender.publish, "nodes"), hints, b"before")
        os.kill(b.pid, signal.SIGKILL)
        await hear(partial(sender.publish, "nodes"), hints, b"after")


async def test_a_subscription_may_begin_while_its_kubo_is_down(
    swarm: Any, network: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SUBSCRIBE_S", 0.2)
    b = swarm.daemons[1]
    address = b.address
    await asyncio.to_thread(swarm.stop, b)
    bus = KuboBus(address, network, Ed25519PrivateKey.generate())
    with pytest.raises(ContentUnavailable, match="no Kubo answers"):
        await bus.publish("nodes", b"x")
    async with bus.subscribe("nodes") as hints:
        swarm.daemons[1] = await asyncio.to_thread(swarm.start, "b")
        assert swarm.daemons[1].address == address
        await hear(partial(bus.publish, "nodes"), hints, b"up again")


async def test_what_strangers_put_on_the_topic_disturbs_nothing(swarm: Any, network: str) -> None:
    a = swarm.daemons[0]
    sender, listener = (KuboBus(a.address, network, Ed25519PrivateKey.generate()) for _ in range(2))
    topic = listener._multibase("nodes")
    async with listener.subscribe("nodes") as hints:
        await hear(partial(sender.publish, "nodes"), hints, b"before")
        for junk in (b"", b"junk", os.urandom(40_000), bytes(200_000)):
            await KuboHttp(a.address).call("pubsub/pub", topic, body=junk, timeout_s=20)
        await hear(partial(sender.publish, "nodes"), hints, b"after")
    assert listener.dropped["invalid"] >= 2
