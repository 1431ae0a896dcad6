"""What a tunnel costs: bytes from a node directly, and through an orchestrator, both with mutual TLS.

`python -m dim_pipelines.cli.bench_links relay|node FOLDER` are the other two processes; `python -m
dim_pipelines.cli.bench_links` measures and prints. All three share this machine's cores, which flatters the direct way.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from dim_pipelines.domain.roster import Limits, Role
from dim_pipelines.errors import NodeUnreachable
from dim_pipelines.settings import Home
from dim_pipelines.wire.access import Peer

if TYPE_CHECKING:
    import grpc

    from dim_pipelines.wire.tls import PinnedPeer, ServerTls

MESSAGE_BYTES: Final = 1 << 20
"""Bytes in one message, as blocks travel."""
_FETCH: Final = "/dim.v1.BlockService/Get"  # a method that a run host may call
_START_S: Final = 30.0
_NETWORK: Final = "bench"
_MODULE: Final = "dim_pipelines.cli.bench_links"
_CALLS: Final = 100
_ROLES: Final[dict[str, Role]] = {"relay": "orchestrator", "node": "node", "caller": "run_host"}


@dataclass(frozen=True, slots=True)
class LinkSpeeds:
    """Megabytes (10^6 bytes) per second, and seconds of a small call there and back, direct and attached."""

    direct: float
    attached: float
    direct_call_s: float
    attached_call_s: float


async def measure_links(megabytes: int = 512) -> LinkSpeeds:
    """Fetch so many MiB from a node in a process of its own, directly and through an orchestrator in another.

    Raises:
        NodeUnreachable: one of the processes did not start, or the tunnel broke.
    """
    from dim_pipelines.dispatch.tunnel import Tunnel
    from dim_pipelines.identity.certificates import load_client
    from dim_pipelines.wire.channel import open_channel

    with tempfile.TemporaryDirectory(prefix="dim-") as text:
        folder = Path(text)
        _prepare(folder)
        client = load_client(_home(folder, "caller"), _ROLES["caller"])
        async with AsyncExitStack() as stack:
            relay = await _start(stack, "relay", folder)
            node = await _start(stack, "node", folder, relay)
            to_relay, to_node = _pin(folder, "relay"), _pin(folder, "node")
            tunnel = Tunnel([lambda: open_channel(relay, peer=to_relay, client=client)], _name("node"))
            stack.push_async_callback(tunnel.close)

            async def one(address: str, pin: PinnedPeer) -> tuple[float, float]:
                channel = open_channel(address, peer=pin, client=client)
                try:
                    await _fetch(channel, 16)
                    begun = time.perf_counter()
                    await _fetch(channel, megabytes)
                    speed = megabytes * MESSAGE_BYTES / 1e6 / (time.perf_counter() - begun)
                    begun = time.perf_counter()
                    for _ in range(_CALLS):
                        await _fetch(channel, 0)
                    return speed, (time.perf_counter() - begun) / _CALLS
                finally:
                    await channel.close(None)

            direct, attached = await one(node, to_node), await one(tunnel.address, to_node)
    return LinkSpeeds(direct[0], attached[0], direct[1], attached[1])


async def _fetch(channel: grpc.aio.Channel, messages: int) -> None:
    from grpc.aio import AioRpcError

    from dim_pipelines.wire.status import from_rpc_error

    call: Any = channel.unary_stream(_FETCH, request_serializer=None, response_deserializer=None)(
        str(messages).encode("ascii")
    )
    try:
        async for _ in call:
            pass
    except AioRpcError as error:
        raise from_rpc_error(error) from error


def _home(folder: Path, who: str) -> Home:
    return Home(folder / who, "")


def _name(who: str) -> str:
    """Give a label of 62 characters, as IPNS names are."""
    return f"k{who:0>61}"


def _pin(folder: Path, who: str) -> PinnedPeer:
    from dim_pipelines.identity.certificates import load_or_create_server
    from dim_pipelines.wire.tls import PinnedPeer

    return PinnedPeer(_name(who), load_or_create_server(_home(folder, who), _name(who)).certificate)


def _prepare(folder: Path) -> None:
    from dim_pipelines.identity.certificates import client_public_key, load_or_create_ca, store_client

    ca = load_or_create_ca(_home(folder, "relay"), _NETWORK, _name("relay"))
    for who, role in _ROLES.items():
        home = _home(folder, who)
        peer = Peer(_NETWORK, role, _name(who))
        store_client(home, role, ca.issue(client_public_key(home), peer, time.time_ns() // 1_000_000))
        _pin(folder, who)


def _tls(folder: Path, who: str) -> ServerTls:
    from dim_pipelines.identity.certificates import load_or_create_ca, load_or_create_server
    from dim_pipelines.wire.tls import ServerTls

    ca = load_or_create_ca(_home(folder, "relay"), _NETWORK, _name("relay"))
    return ServerTls(load_or_create_server(_home(folder, who), _name(who)), lambda: [ca.certificate], _Everybody())


class _Everybody:
    """A guard for three processes that trust each other."""

    def check(self, peer: Peer) -> None:
        """Let everybody in whom the CA knows."""

    def revoked(self, peer: Peer) -> asyncio.Event:
        """Never cut anybody off."""
        return asyncio.Event()


async def _start(stack: AsyncExitStack, who: str, folder: Path, *arguments: str) -> str:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", _MODULE, who, str(folder), *arguments, stdout=asyncio.subprocess.PIPE
    )

    async def end() -> None:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()

    stack.push_async_callback(end)
    assert process.stdout is not None
    try:
        line = await asyncio.wait_for(process.stdout.readline(), _START_S)
    except TimeoutError:
        line = b""
    if not line:
        raise NodeUnreachable(f"the {who} of the measurement did not start")
    return str(json.loads(line))


async def _serve_relay(folder: Path) -> None:
    from prometheus_client import CollectorRegistry

    from dim_pipelines.orchestrator.link import LinkServicer
    from dim_pipelines.telemetry.metrics import LinkMetrics
    from dim_pipelines.wire.callers import peer_of

    servicer = LinkServicer(
        peer_of, lambda name: Limits(), LinkMetrics(CollectorRegistry()),
        on_attached=lambda name: None, on_detached=lambda name: None,
    )  # fmt: skip
    await _serve(folder, "relay", lambda server: [servicer.register(server)], None)


async def _serve_node(folder: Path, relay: str) -> None:
    import grpc

    from dim_pipelines.identity.certificates import load_client
    from dim_pipelines.node.attachment import Attachment, Door
    from dim_pipelines.wire.channel import open_channel

    piece = bytes(MESSAGE_BYTES)

    async def fetch(request: bytes, context: Any) -> AsyncIterator[bytes]:
        for _ in range(int(request)):
            yield piece

    def register(server: grpc.aio.Server) -> Sequence[str]:
        service, _, method = _FETCH.removeprefix("/").rpartition("/")
        handler = grpc.unary_stream_rpc_method_handler(fetch)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
        return []

    async def attach(address: str) -> asyncio.Task[None]:
        client, pin = load_client(_home(folder, "node"), "node"), _pin(folder, "relay")
        door = Door(_name("relay"), "relay", lambda: open_channel(relay, peer=pin, client=client))
        stands = asyncio.Event()
        attachment = Attachment(_name("node"), b"", lambda: [door], address, changed=stands.set)
        running = asyncio.create_task(attachment.run())
        await stands.wait()
        return running

    await _serve(folder, "node", register, attach)


async def _serve(
    folder: Path,
    who: str,
    register: Callable[[grpc.aio.Server], Sequence[str]],
    attach: Callable[[str], Awaitable[asyncio.Task[None]]] | None,
) -> None:
    from prometheus_client import CollectorRegistry

    from dim_pipelines.telemetry.metrics import RpcMetrics
    from dim_pipelines.wire.server import RpcServer, SecureListener

    secure = SecureListener("127.0.0.1:0", _tls(folder, who))
    server = await RpcServer.start("", register, RpcMetrics(CollectorRegistry()), secure=secure)
    running = await attach(server.secure_address) if attach else None
    print(json.dumps(server.secure_address), flush=True)
    await (running or asyncio.Event().wait())  # until killed


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["relay", folder]:
            asyncio.run(_serve_relay(Path(folder)))
        case ["node", folder, relay]:
            asyncio.run(_serve_node(Path(folder), relay))
        case _:
            speeds = asyncio.run(measure_links())
            print(
                f"direct {speeds.direct:.0f} MB/s, {speeds.direct_call_s * 1000:.1f} ms a call; "
                f"attached {speeds.attached:.0f} MB/s, {speeds.attached_call_s * 1000:.1f} ms a call"
            )
