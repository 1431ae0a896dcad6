"""A node's devices: their engine processes started, their memory budgeted, their loops run."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dim_pipelines.domain.node import Device
from dim_pipelines.errors import ConfigurationError
from dim_pipelines.node.admission import DeviceMemory
from dim_pipelines.node.engine_host import EngineConfig, EngineHost, Hello
from dim_pipelines.node.runner import Runner
from dim_pipelines.settings import Home
from dim_pipelines.telemetry.metrics import NodeMetrics

log = logging.getLogger(__name__)

_CPU_SHARE: Final = 0.6
_CUDA_SHARE: Final = 0.9
_PROCESS_BYTES: Final = 2 << 30  # what an engine process needs besides its models: libraries, buffers, outputs


@dataclass(frozen=True, slots=True)
class DeviceConfig:
    """Which devices a node offers, and how.

    Attributes:
        devices: `cpu`, `cuda:0`…; all of one numerics class.
        engines: the engines to offer.
        threads: compute threads of an engine process; part of the numerics class.
        device_bytes: budget of models per device; a share of its memory when 0.
        task_timeout_s: the longest a task may take.
        secrets: paths that no model may be able to read.
    """

    devices: tuple[str, ...]
    engines: tuple[str, ...]
    threads: int
    device_bytes: int
    task_timeout_s: float
    secrets: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class Devices:
    """Devices at work: what they are, the numerics base class of each engine on them, and their loops."""

    offered: tuple[Device, ...]
    numerics: dict[str, str]
    runners: tuple[Runner, ...]


async def start_devices(
    config: DeviceConfig, home: Home, stack: AsyncExitStack, metrics: NodeMetrics, *, confined: bool
) -> Devices:
    """Start an engine process and a loop for each device; they end with the stack.

    Raises:
        ConfigurationError: a device is none, or they differ in numerics class, or no engine can be imported.
        EngineFailed: an engine process does not start.
    """
    hosts = [EngineHost(_engine(config, home, device, confined)) for device in config.devices]
    for host in hosts:
        stack.push_async_callback(host.kill)
    hellos = [await host.start() for host in hosts]
    numerics = _numerics(config.devices, hellos)
    offered = tuple(_device(device, hello) for device, hello in zip(config.devices, hellos, strict=True))
    budgets = [config.device_bytes or _budget(device) for device in offered]
    runners = tuple(
        Runner(device.id, host, DeviceMemory(budget), metrics, task_timeout_s=config.task_timeout_s)
        for device, host, budget in zip(offered, hosts, budgets, strict=True)
    )
    for runner in runners:
        metrics.engine_starts.labels(runner.device).inc()
        await stack.enter_async_context(_looping(runner))
    return Devices(offered, numerics, runners)


@asynccontextmanager
async def _looping(runner: Runner) -> AsyncIterator[None]:
    loop = asyncio.create_task(runner.run())
    try:
        yield
    finally:
        loop.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await loop


def _engine(config: DeviceConfig, home: Home, device: str, confine: bool) -> EngineConfig:
    cpu = device == "cpu"
    if not cpu and not (device.startswith("cuda:") and device[5:].isdigit()):
        raise ConfigurationError(f"not a device: {device!r}", hint="it is cpu, or cuda:0, cuda:1 …")
    return EngineConfig(
        device=device,
        engines=config.engines,
        threads=config.threads,
        models=home.node / "models",
        scratch=home.node / "scratch" / device.replace(":", "-"),
        secrets=config.secrets,
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
