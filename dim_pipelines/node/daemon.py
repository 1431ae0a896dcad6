"""The node daemon: put together, started, drained.

`serve` is the whole life of a daemon: lock the home, open the store, start the engine processes, listen,
announce, and on SIGTERM or SIGINT drain and end; before it serves, a signal takes back what was begun. A
second signal ends it at once; the engine processes die with it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Final

import grpc
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from prometheus_client import CollectorRegistry

from dim_pipelines.bus.open_bus import open_bus
from dim_pipelines.content.open import EMBEDDED, open_store
from dim_pipelines.content.store import ContentStore
from dim_pipelines.discovery.open_names import open_names
from dim_pipelines.domain.dataset import MAX_SHARD_BYTES
from dim_pipelines.domain.node import NodeDescription
from dim_pipelines.errors import ConfigurationError
from dim_pipelines.identity.keys import format_public_key, load_or_create_key, parse_public_key, public_bytes
from dim_pipelines.identity.membership import Membership
from dim_pipelines.identity.trust import Trust, load_trust
from dim_pipelines.node import confinement
from dim_pipelines.node.blocks import BlockServicer
from dim_pipelines.node.controls_file import ControlsFile, controls_path
from dim_pipelines.node.devices import DeviceConfig, start_devices
from dim_pipelines.node.epochs import Epochs
from dim_pipelines.node.lifetime import NodeAddress, Stop, announced, locked, socket_in, stopping_by_signal
from dim_pipelines.node.model_cache import ModelCache
from dim_pipelines.node.networking import ROADS, NodeNetwork, find_membership
from dim_pipelines.node.plans import PlanReader
from dim_pipelines.node.service import NodeParts, NodeServicer
from dim_pipelines.node.speeds import SpeedBook
from dim_pipelines.node.state import NodeState
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


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """How to run a daemon.

    Attributes:
        home: its state; one daemon per home.
        name: for people, unique within a pool; when empty the label that the roster has, else the machine's name.
        listen: `unix:PATH` or a loopback `HOST:PORT` for this machine; a socket in the home when empty.
        secure_listen: `HOST:PORT` for others, with TLS; only in a home that has joined a network, where it is chosen
            when empty.
        advertise: `HOST:PORT`s at which others reach it; what the machine's addresses say when empty.
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
        roads: by which its record goes to the network (see `networking.ROADS`); all when empty.
        parent: a descriptor that ends when the parent process does; the daemon ends then, too.
    """

    home: Home
    name: str = ""
    listen: str = ""
    secure_listen: str = ""
    advertise: tuple[str, ...] = ()
    ipfs: str = "embedded"
    public: bool = False
    engine_threads: int = 1
    devices: tuple[str, ...] = ("cpu",)
    engines: tuple[str, ...] = ("torch", "echo")
    trust: tuple[str, ...] = ()
    metrics_port: int | None = 0
    cache_bytes: int = 20 << 30
    device_bytes: int = 0
    roads: tuple[str, ...] = ()
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
    address = str(Address.parse(config.listen)) if config.listen else ""
    async with AsyncExitStack() as stack:
        stack.enter_context(locked(home.node))
        address = address or stack.enter_context(socket_in(home.node))
        check_free(address)  # now, because engine processes take seconds to start
        trust = _trust(home, config.trust)
        private = load_or_create_key(home.node_key)
        key = public_bytes(private)
        controls = ControlsFile(controls_path(home))
        membership = _membership(config, private)
        name = config.name or _label(membership) or socket.gethostname()
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
        devices = await start_devices(_devices(config), home, stack, metrics, confined=confined)
        base = NodeDescription(
            name, key, _version(), devices.offered, devices.numerics, store.swarm, MAX_SHARD_BYTES,
            id=membership.name if membership else "",
        )  # fmt: skip
        state = NodeState(base, controls, cache, SpeedBook(home.node / "speeds.json"))
        trusting = NodeTrust(
            trust.submitters,
            trust.publishers if confined else frozenset({public_bytes(load_or_create_key(home.user_key))}),
            roster=lambda: membership.roster if membership else None,
            roster_publishers=bool(confined and membership and membership.trust_publishers),
        )
        plans = PlanReader(
            store, cache, trusting, lambda model, licence: controls.current().admit_licence(model, licence)
        )
        service = NodeServicer(
            NodeParts(
                name, store, cache, plans, devices.runners, epochs, trusting, devices.numerics, metrics,
                state.describe, controls.current, state.local_time, state.measured, state.status,
            )
        )  # fmt: skip

        def register(server: grpc.aio.Server) -> Sequence[str]:
            node_pb2_grpc.add_NodeServiceServicer_to_server(service, server)
            blocks_pb2_grpc.add_BlockServiceServicer_to_server(BlockServicer(store, metrics), server)
            files = (node_pb2.DESCRIPTOR, blocks_pb2.DESCRIPTOR)
            return [each.full_name for file in files for each in file.services_by_name.values()]

        network = _network(config, membership, private, store, state, service) if membership else None
        server = await RpcServer.start(
            address,
            register,
            RpcMetrics(registry),
            unbounded=frozenset({"/dim.v1.NodeService/Drain"}),
            secure=network.secure if network else None,
        )
        stack.push_async_callback(server.stop, 0.5)
        shown = ""
        if config.metrics_port is not None:
            exporter = MetricsServer(registry, config.metrics_port)
            stack.push_async_callback(asyncio.to_thread, exporter.close)
            shown = exporter.address
        here = NodeAddress(
            name, server.address, os.getpid(), format_public_key(key), shown, server.secure_address,
            membership.network if membership else "", base.id,
        )  # fmt: skip
        state.announce = stack.enter_context(announced(home.node / NODE_FILE, here))
        if network:
            state.network = network
            network.on_reach(lambda: state.reached(here))
            await stack.enter_async_context(network.running(server.secure_address))
        watching = asyncio.create_task(state.watch(service))
        stack.callback(watching.cancel)
        stopping.started()
        ready(here)
        await stopping.wait()
        log.info("draining")
        service.draining = True
        await server.serving(False)
        if network:
            await network.say_farewell()
        finished, handed_back = await service.drain(DRAIN_S if stopping.patient else 0.5)
        log.info("drained: %d tasks finished, %d handed back", finished, handed_back)


def _devices(config: NodeConfig) -> DeviceConfig:
    home = config.home
    return DeviceConfig(
        devices=config.devices,
        engines=config.engines,
        threads=config.engine_threads,
        device_bytes=config.device_bytes,
        task_timeout_s=config.task_timeout_s,
        secrets=(home.keys, home.network, home.trusted, home.root / "dim.db"),
    )


def _membership(config: NodeConfig, key: Ed25519PrivateKey) -> Membership | None:
    """Give the home's membership as this node.

    Raises:
        ConfigurationError: it is damaged; or there is none, and it was said where to listen for others.
    """
    membership = find_membership(config.home, key)
    if membership is None and (config.secure_listen or config.advertise):
        raise ConfigurationError("this home is no node of a network", hint="dim network join INVITE")
    if config.secure_listen:
        check_free(config.secure_listen, secure=True)
    return membership


def _label(membership: Membership | None) -> str:
    """Give what the network calls this node; empty where it is in none."""
    listed = membership.roster.members.get(membership.name) if membership else None
    return listed.label if listed else ""


def _network(
    config: NodeConfig,
    membership: Membership,
    key: Ed25519PrivateKey,
    store: ContentStore,
    state: NodeState,
    service: NodeServicer,
) -> NodeNetwork:
    """Put the node's part in its network together; hints and names need a Kubo that others share."""
    shared = config.ipfs != EMBEDDED
    return NodeNetwork(
        membership,
        key,
        listen=config.secure_listen,
        advertised=config.advertise,
        store=store,
        names=open_names(config.ipfs, config.home) if shared else None,
        bus=open_bus(config.ipfs, config.home, membership.network, key) if shared else None,
        roads=config.roads or ROADS,
        advertise=lambda: state.advertise(draining=service.draining),
        roster_changed=service.check_trust,
    )


def _trust(home: Home, further: Sequence[str]) -> Trust:
    """Give whom the node trusts: `trusted.yaml`, the home's own user key, and the keys of the command line."""
    trust = load_trust(home.trusted).including(public_bytes(load_or_create_key(home.user_key)))
    for text in further:
        trust = trust.including(parse_public_key(text))
    return trust


def _version() -> str:
    try:
        return version("dim-pipelines")
    except PackageNotFoundError:
        return "0"
