"""The node daemon: put together, started, drained.

`serve` is the whole life of a daemon: lock the home, open the store, start the engine processes, listen,
announce, and on SIGTERM or SIGINT drain and end; before it serves, a signal takes back what was begun. A
second signal ends it at once; the engine processes die with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Final

import grpc
from prometheus_client import CollectorRegistry

from dim_pipelines.content.open import open_store
from dim_pipelines.domain.dataset import MAX_SHARD_BYTES
from dim_pipelines.domain.node import Device, NodeDescription
from dim_pipelines.errors import ConfigurationError
from dim_pipelines.identity.keys import format_public_key, load_or_create_key, parse_public_key, public_bytes
from dim_pipelines.identity.trust import Trust, load_trust
from dim_pipelines.node import confinement
from dim_pipelines.node.admission import DeviceMemory
from dim_pipelines.node.blocks import BlockServicer
from dim_pipelines.node.engine_host import EngineConfig, EngineHost, Hello
from dim_pipelines.node.epochs import Epochs
from dim_pipelines.node.lifetime import NodeAddress, Stop, announced, locked, socket_in, stopping_by_signal
from dim_pipelines.node.model_cache import ModelCache
from dim_pipelines.node.plans import PlanReader
from dim_pipelines.node.runner import Runner
from dim_pipelines.node.service import NodeParts, NodeServicer
from dim_pipelines.node.trusting import NodeTrust
from dim_pipelines.settings import Home
from dim_pipelines.telemetry.metrics import MetricsServer, NodeMetrics, RpcMetrics
from dim_pipelines.wire.channel import Address
from dim_pipelines.wire.server import RpcServer, check_free
from dim_pipelines.wire.v1 import blocks_pb2, blocks_pb2_grpc, node_pb2, node_pb2_grpc

__all__ = ["NodeAddress", "NodeConfig", "serve"]

log = logging.getLogger(__name__)

NODE_FILE: Final = "node.json"
"""In the home's `node` folder while a daemon runs: its name, address, process id, key and metrics address."""
DRAIN_S: Final = 60.0
"""How long a drain by signal waits for running tasks."""
_CPU_SHARE: Final = 0.6
_CUDA_SHARE: Final = 0.9
_PROCESS_BYTES: Final = 2 << 30  # what an engine process needs besides its models: libraries, buffers, outputs


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """How to run a daemon.

    Attributes:
        home: its state; one daemon per home.
        name: for people, unique within a pool; the machine's name when empty.
        listen: `unix:PATH` or a loopback `HOST:PORT`; a socket in the home when empty.
        ipfs: the content store (see `content/open`).
        public: allow a Kubo that is not shown to be private.
        engine_threads: compute threads of an engine process; part of the numerics class.
        devices: `cpu`, `cuda:0`…; all of one numerics class.
        engines: the engines to offer.
        trust: further keys (`ed25519:…`) whose batches are run and whose models are loaded.
        metrics_port: port of `/metrics` on 127.0.0.1, 0 for a free one; None: not served.
        cache_bytes: budget of models on the disk.
        device_bytes: budget of models per device; a share of its memory when 0.
        task_timeout_s: the longest a task may take.
        parent: a descriptor that ends when the parent process does; the daemon ends then, too.
    """

    home: Home
    name: str = ""
    listen: str = ""
    ipfs: str = "embedded"
    public: bool = False
    engine_threads: int = 1
    devices: tuple[str, ...] = ("cpu",)
    engines: tuple[str, ...] = ("torch", "echo")
    trust: tuple[str, ...] = ()
    metrics_port: int | None = 0
    cache_bytes: int = 20 << 30
    device_bytes: int = 0
    task_timeout_s: float = 600.0
    parent: int | None = None


async def serve(config: NodeConfig, *, ready: Callable[[NodeAddress], None]) -> None:
    """Run a daemon until SIGTERM or SIGINT has drained it; a second signal ends the process at once.

    Args:
        config: how.
        ready: called once when it serves and `node.json` is written.

    Raises:
        ConfigurationError: the address is in use or not local, the home has a daemon already, a key is malformed.
        EngineFailed: an engine process does not start.
        ContentUnavailable: the content store does not answer.
    """
    with stopping_by_signal(config.parent) as stopping, stopping.starting():
        await _serve(config, ready, stopping)


async def _serve(config: NodeConfig, ready: Callable[[NodeAddress], None], stopping: Stop) -> None:
    home = config.home
    name = config.name or socket.gethostname()
    address = str(Address.parse(config.listen)) if config.listen else ""
    async with AsyncExitStack() as stack:
        stack.enter_context(locked(home.node))
        address = address or stack.enter_context(socket_in(home.node))
        check_free(address)  # now, because engine processes take seconds to start
        trust = _trust(home, config.trust)
        key = public_bytes(load_or_create_key(home.node_key))
        registry = CollectorRegistry()
        metrics = NodeMetrics(registry)
        store = await open_store(config.ipfs, home, public=config.public)
        stack.push_async_callback(store.close)
        cache = ModelCache(home.node / "models", config.cache_bytes)
        metrics.cache_bytes.set(cache.bytes)
        epochs = Epochs(home.node / "epochs.db")
        stack.callback(epochs.close)

        confined = not (why := confinement.unavailable())
        if why:
            log.warning("models are not confined here (%s): only programs signed by this home's own key run", why)
        hosts = [EngineHost(_engine(config, device, confined)) for device in config.devices]
        for host in hosts:
            stack.push_async_callback(host.kill)
        hellos = [await host.start() for host in hosts]
        numerics = _numerics(config.devices, hellos)
        devices = tuple(_device(device, hello) for device, hello in zip(config.devices, hellos, strict=True))
        budgets = [config.device_bytes or _budget(device) for device in devices]
        runners = [
            Runner(device.id, host, DeviceMemory(budget), metrics, task_timeout_s=config.task_timeout_s)
            for device, host, budget in zip(devices, hosts, budgets, strict=True)
        ]
        for runner in runners:
            metrics.engine_starts.labels(runner.device).inc()
            await stack.enter_async_context(_looping(runner))
        description = NodeDescription(name, key, _version(), devices, numerics, store.swarm, MAX_SHARD_BYTES)
        own = public_bytes(load_or_create_key(home.user_key))
        publishers = trust.publishers if confined else frozenset({own})
        service = NodeServicer(
            NodeParts(
                name, store, cache, PlanReader(store, cache, publishers), runners, epochs,
                NodeTrust(trust.submitters), numerics, metrics, lambda: description,
            )
        )  # fmt: skip

        def register(server: grpc.aio.Server) -> Sequence[str]:
            node_pb2_grpc.add_NodeServiceServicer_to_server(service, server)
            blocks_pb2_grpc.add_BlockServiceServicer_to_server(BlockServicer(store, metrics), server)
            files = (node_pb2.DESCRIPTOR, blocks_pb2.DESCRIPTOR)
            return [each.full_name for file in files for each in file.services_by_name.values()]

        server = await RpcServer.start(
            address, register, RpcMetrics(registry), unbounded=frozenset({"/dim.v1.NodeService/Drain"})
        )
        stack.push_async_callback(server.stop, 0.5)
        shown = ""
        if config.metrics_port is not None:
            exporter = MetricsServer(registry, config.metrics_port)
            stack.push_async_callback(asyncio.to_thread, exporter.close)
            shown = exporter.address
        here = NodeAddress(name, server.address, os.getpid(), format_public_key(key), shown)
        stack.enter_context(announced(home.node / NODE_FILE, here))
        stopping.started()
        ready(here)
        await stopping.wait()
        log.info("draining")
        await server.serving(False)
        finished, handed_back = await service.drain(DRAIN_S if stopping.patient else 0.5)
        log.info("drained: %d tasks finished, %d handed back", finished, handed_back)


@asynccontextmanager
async def _looping(runner: Runner) -> AsyncIterator[None]:
    loop = asyncio.create_task(runner.run())
    try:
        yield
    finally:
        loop.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await loop


def _trust(home: Home, further: Sequence[str]) -> Trust:
    """Give whom the node trusts: `trusted.yaml`, the home's own user key, and the keys of the command line."""
    trust = load_trust(home.trusted).including(public_bytes(load_or_create_key(home.user_key)))
    for text in further:
        trust = trust.including(parse_public_key(text))
    return trust


def _engine(config: NodeConfig, device: str, confine: bool) -> EngineConfig:
    home, cpu = config.home, device == "cpu"
    if not cpu and not (device.startswith("cuda:") and device[5:].isdigit()):
        raise ConfigurationError(f"not a device: {device!r}", hint="it is cpu, or cuda:0, cuda:1 …")
    return EngineConfig(
        device=device,
        engines=config.engines,
        threads=config.engine_threads,
        models=home.node / "models",
        scratch=home.node / "scratch" / device.replace(":", "-"),
        secrets=(home.node_key, home.user_key, home.trusted, home.root / "dim.db"),
        memory_bytes=(config.device_bytes or int(_machine_bytes() * _CPU_SHARE)) + _PROCESS_BYTES if cpu else 0,
        confine=confine,
    )


def _numerics(devices: Sequence[str], hellos: Sequence[Hello]) -> dict[str, str]:
    """Give the engines that all devices offer in one numerics class.

    Raises:
        ConfigurationError: there is none, or the devices differ.
    """
    first = hellos[0].numerics
    for device, hello in zip(devices, hellos, strict=True):
        for engine, why in hello.missing.items():
            log.warning("device %s offers no engine %s: %s", device, engine, why)
        if hello.numerics != first:
            raise ConfigurationError(
                f"{devices[0]} and {device} compute in different numerics classes", hint="run one daemon for each kind"
            )
    if not first:
        raise ConfigurationError("no engine can be imported", hint="pip install 'dim-pipelines[node]'")
    return first


def _device(device: str, hello: Hello) -> Device:
    return Device(device, device.partition(":")[0], hello.device_name, hello.memory_bytes)


def _budget(device: Device) -> int:
    return int(device.memory_bytes * (_CPU_SHARE if device.kind == "cpu" else _CUDA_SHARE))


def _machine_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _version() -> str:
    try:
        return version("dim-pipelines")
    except PackageNotFoundError:
        return "0"
