"""Models made ready ahead of work: reserved and loaded on the devices, run on zeros, and measured."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Final

from dim_pipelines.content.store import ContentStore
from dim_pipelines.domain.advertisement import Speed
from dim_pipelines.domain.cid import Cid
from dim_pipelines.domain.node import numerics_class
from dim_pipelines.errors import InputError, NodeBusy, NodeRefused
from dim_pipelines.node.admission import DoesNotFit
from dim_pipelines.node.model_cache import ModelCache
from dim_pipelines.node.plans import PlanReader, ReadyStep
from dim_pipelines.node.runner import Runner
from dim_pipelines.node.speeds import Timing, combine

WARM_UP_RUNS: Final = 3
"""Runs on each device that are not counted: the first ones fill caches and choose kernels."""
MAX_MEASURE_S: Final = 60
"""The longest measurement of one device, in seconds."""
_BATCH_ROWS: Final = 64
_MEASURE_S: Final = 5

Tell = Callable[[str, int, int], None]
"""Is told (stage, done, total)."""


async def reserve(all_runners: Sequence[Runner], steps: Sequence[ReadyStep], runners: list[Runner]) -> None:
    """Reserve device memory for the steps wherever they fit, and load them there.

    Args:
        all_runners: the devices.
        steps: what is to be loaded.
        runners: gets the devices on which room was taken, also where loading then fails; each wants its releases.

    Raises:
        DoesNotFit: they fit on no device.
        EngineFailed: a model cannot be loaded.
    """
    refused: DoesNotFit | None = None
    for runner in all_runners:
        admitted: list[str] = []
        try:
            for step in steps:
                evicted = runner.memory.admit(step.key, step.batch_rows, step.model.bytes)
                admitted.append(step.key)
                await runner.unload(evicted)
        except BaseException as error:
            for key in admitted:
                runner.memory.release(key)
            if not isinstance(error, DoesNotFit):
                raise
            refused = error
            continue
        runners.append(runner)
        for step in steps:
            await runner.prepare(step)
    if not runners:
        raise refused or NodeBusy("this node has no device")


class Warmer:
    """Warms and measures models on a node's devices."""

    def __init__(
        self,
        store: ContentStore,
        cache: ModelCache,
        plans: PlanReader,
        runners: Sequence[Runner],
        numerics: Mapping[str, str],
    ) -> None:
        """Keep the parts of the node; `numerics` is engine → numerics base class."""
        self._store = store
        self._cache = cache
        self._plans = plans
        self._runners = runners
        self._numerics = numerics

    async def warm(self, model: Cid, signatures: Sequence[Cid], batch_rows: int, tell: Tell) -> None:
        """Bring a model to the disk and the devices, and run it once on each.

        Raises:
            Forbidden, NodeRefused: this node may not load it.
            DoesNotFit, EngineFailed, ContentError: it cannot.
        """
        async with self._ready(model, signatures, batch_rows, tell) as (step, runners):
            for done, runner in enumerate(runners):
                tell("warm", done, len(runners))
                await runner.warm(step)

    async def measure(
        self,
        model: Cid,
        signatures: Sequence[Cid],
        batch_rows: int,
        seconds: int,
        tell: Tell,
        told: Callable[[Speed], None],
    ) -> Speed:
        """Measure how many rows a second a model computes here, on micro-batches of zeros, one device at a time.

        Args:
            model: its CID.
            signatures: over it; none for a model on the disk: those that let it in are checked again.
            batch_rows: rows of a micro-batch; 0: 64, or what the model takes at most.
            seconds: how long on each device, at most 60; 0: 5.
            tell: is told the stages.
            told: gets the speed of all devices so far.

        Raises:
            Forbidden, NodeRefused: this node may not load it.
            InputError: the model takes fewer rows at a time.
            DoesNotFit, EngineFailed, ContentError: it cannot.
        """
        length_s = min(seconds or _MEASURE_S, MAX_MEASURE_S)
        signatures = signatures or self._cache.vouchers(model)
        async with self._ready(model, signatures, batch_rows, tell) as (step, runners):
            described = step.model.description
            numerics = numerics_class(self._numerics[described.engine], described.dtype)
            timings = [Timing(step.batch_rows) for _ in runners]
            speed = combine(model, numerics, timings)
            loop = asyncio.get_running_loop()
            for done, (runner, timing) in enumerate(zip(runners, timings, strict=True)):
                for _ in range(WARM_UP_RUNS):
                    await runner.time_once(step)
                until = loop.time() + length_s
                shown = loop.time()
                while timing.samples < 2 or loop.time() < until:
                    timing.add(await runner.time_once(step))
                    if loop.time() - shown >= 0.5:
                        shown = loop.time()
                        tell("measure", done, len(runners))
                        told(combine(model, numerics, timings))
                speed = combine(model, numerics, timings)
                told(speed)
            return speed

    @asynccontextmanager
    async def _ready(
        self, model: Cid, signatures: Sequence[Cid], batch_rows: int, tell: Tell
    ) -> AsyncIterator[tuple[ReadyStep, list[Runner]]]:
        """Hold a model on the disk and on the devices while the block runs."""
        tell("verify", 0, 1)
        described, publisher = await self._plans.allowed(model, signatures)
        if described.engine not in self._numerics:
            raise NodeRefused(f"this node has no engine {described.engine!r}")
        rows = batch_rows or min(_BATCH_ROWS, described.max_batch_rows)
        if rows > described.max_batch_rows:
            raise InputError(f"batch_rows is {rows}, the model takes 1 to {described.max_batch_rows}")
        tell("verify", 1, 1)
        held = await self._cache.acquire(model, self._store, tell)
        self._cache.vouch(model, signatures)
        step = ReadyStep(held, {}, rows, publisher)
        runners: list[Runner] = []
        try:
            tell("load", 0, len(self._runners))
            await reserve(self._runners, [step], runners)
            tell("load", len(runners), len(self._runners))
            yield step, runners
        finally:
            for runner in runners:
                runner.memory.release(step.key)
            self._plans.release([step])
