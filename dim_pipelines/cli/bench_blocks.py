"""What TLS costs BlockService: the same blocks put and got in plaintext and with mutual TLS, in turns.

`python -m dim_pipelines.cli.bench_blocks FOLDER` is the node's half, a process of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from dim_pipelines.cli.bench_load import LoadMeter
from dim_pipelines.domain.cid import RAW, Cid
from dim_pipelines.errors import ContentMismatch, NodeUnreachable

if TYPE_CHECKING:
    import grpc

    from dim_pipelines.identity.membership import Membership
    from dim_pipelines.settings import Home
    from dim_pipelines.wire.v1 import blocks_pb2

BLOCK_BYTES: Final = 1 << 20
BLOCKS: Final = 64
"""Blocks of 1 MiB that travel there and back in one measurement."""
TASK_BYTES: Final = 64 << 10
TASKS: Final = 200
"""Tasks of one measurement: an input of 64 KiB goes there, an output of 64 KiB comes back."""
_START_S: Final = 30.0
_MODULE: Final = "dim_pipelines.cli.bench_blocks"


@dataclass(frozen=True, slots=True)
class Carried:
    """Megabytes (10^6 bytes) per second there and back, and processor milliseconds of both ends for a task's data."""

    megabytes_per_s: float
    cpu_ms_per_task: float


async def measure_blocks(rounds: int) -> tuple[Carried, Carried]:
    """Measure in plaintext and with TLS; medians of the rounds.

    Raises:
        NodeUnreachable: the node's half did not start.
    """
    from dim_pipelines.wire.channel import open_channel
    from dim_pipelines.wire.tls import PinnedPeer

    with tempfile.TemporaryDirectory(prefix="dim-bench-") as scratch:
        caller, node = _found(Path(scratch))
        async with _serving(Path(scratch)) as (plain, secure):
            pin = PinnedPeer(node.name, node.server().certificate)
            ways = [open_channel(plain), open_channel(secure, peer=pin, client=caller.client("run_host"))]
            try:
                found: list[list[Carried]] = [[], []]
                for number in range(rounds + 1):
                    for way, kept in zip(ways, found, strict=True):
                        carried = await _carry(way)
                        if number:  # the first one warms both ends
                            kept.append(carried)
            finally:
                for way in ways:
                    await way.close(None)
    first, second = (
        Carried(
            statistics.median(each.megabytes_per_s for each in kept),
            statistics.median(each.cpu_ms_per_task for each in kept),
        )
        for kept in found
    )
    return first, second


async def _carry(channel: grpc.aio.Channel) -> Carried:
    from dim_pipelines.wire.v1 import blocks_pb2, blocks_pb2_grpc

    stub = blocks_pb2_grpc.BlockServiceStub(channel)

    async def there_and_back(blocks: Sequence[blocks_pb2.Block]) -> None:
        await stub.Put(blocks_pb2.Blocks(blocks=[block]) for block in blocks)
        got = 0
        async for answer in stub.Get(blocks_pb2.GetRequest(cids=[block.cid for block in blocks])):
            got += sum(len(block.data) for block in answer.blocks)
        if got != sum(len(block.data) for block in blocks):
            raise ContentMismatch("other bytes came back")

    large = [_fresh(BLOCK_BYTES) for _ in range(BLOCKS)]
    begun = time.perf_counter()
    await there_and_back(large)
    seconds = time.perf_counter() - begun
    small = [_fresh(TASK_BYTES) for _ in range(TASKS)]
    meter = LoadMeter()
    for block in small:
        await there_and_back([block])
    spent = meter.look().own_cpu_s
    return Carried(2 * BLOCKS * BLOCK_BYTES / 1e6 / seconds, 1000 * spent / TASKS)


def _fresh(size: int) -> blocks_pb2.Block:
    from dim_pipelines.wire.v1 import blocks_pb2

    data = os.urandom(size)
    return blocks_pb2.Block(cid=Cid.of(RAW, data), data=data)


def _homes(folder: Path) -> tuple[Home, Home]:
    from dim_pipelines.settings import Home

    return Home.at(folder / "caller"), Home.at(folder / "node")


def _found(folder: Path) -> tuple[Membership, Membership]:
    """Found a network of two homes: an orchestrator that also dispatches, and a node."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from dim_pipelines.domain.ipns import ipns_name
    from dim_pipelines.domain.roster import Member
    from dim_pipelines.identity.certificates import client_public_key, load_or_create_ca, store_client
    from dim_pipelines.identity.keys import load_or_create_key, public_bytes
    from dim_pipelines.identity.membership import Membership
    from dim_pipelines.identity.roster import found_network
    from dim_pipelines.wire.access import Peer

    now_ms = time.time_ns() // 1_000_000
    root = Ed25519PrivateKey.generate()
    network = ipns_name(public_bytes(root))
    caller, node = _homes(folder)
    keys = [public_bytes(load_or_create_key(path)) for path in (caller.user_key, node.node_key)]
    ca = load_or_create_ca(caller, network, ipns_name(keys[0]))
    members = [
        Member(key=keys[0], roles=("orchestrator", "run_host"), owner="bench", ca=ca.certificate, admitted_ms=now_ms),
        Member(key=keys[1], roles=("node",), owner="bench", admitted_ms=now_ms),
    ]
    signed, pages = found_network(root, Ed25519PrivateKey.generate(), members, now_ms)
    peer = Peer(network, "run_host", ipns_name(keys[0]))
    store_client(caller, "run_host", ca.issue(client_public_key(caller), peer, now_ms))
    made = [
        Membership.create(
            home, network=network, name=ipns_name(key), roles=member.roles, signed=signed, pages=pages, now_ms=now_ms
        )
        for home, key, member in zip((caller, node), keys, members, strict=True)
    ]
    return made[0], made[1]


@asynccontextmanager
async def _serving(folder: Path) -> AsyncIterator[tuple[str, str]]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", _MODULE, str(folder), stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        line = await asyncio.wait_for(process.stdout.readline(), _START_S)
        if not line:
            raise NodeUnreachable("the node's half of the measurement did not start")
        plain, secure = json.loads(line)
        yield plain, secure
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _serve(folder: Path) -> None:
    """Serve BlockService on loopback both ways until killed."""
    from prometheus_client import CollectorRegistry

    from dim_pipelines.content.memory import MemoryContentStore
    from dim_pipelines.identity.membership import Membership
    from dim_pipelines.node.blocks import BlockServicer
    from dim_pipelines.telemetry.metrics import NodeMetrics, RpcMetrics
    from dim_pipelines.wire.server import RpcServer, SecureListener
    from dim_pipelines.wire.tls import ServerTls
    from dim_pipelines.wire.v1 import blocks_pb2, blocks_pb2_grpc

    membership = Membership.load(_homes(folder)[1])
    assert membership is not None
    registry = CollectorRegistry()
    servicer = BlockServicer(MemoryContentStore(), NodeMetrics(registry))

    def register(server: grpc.aio.Server) -> Sequence[str]:
        blocks_pb2_grpc.add_BlockServiceServicer_to_server(servicer, server)
        return [blocks_pb2.DESCRIPTOR.services_by_name["BlockService"].full_name]

    tls = ServerTls(membership.server(), lambda: membership.roster.client_cas(), membership.guard)
    secure = SecureListener("127.0.0.1:0", tls)
    server = await RpcServer.start("127.0.0.1:0", register, RpcMetrics(registry), secure=secure)
    print(json.dumps([server.address, server.secure_address]), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1])))
