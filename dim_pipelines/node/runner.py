"""A device's loop: choose a lane, see that its model is loaded, run its tasks, hand the answers over.

One loop per device, each with its own engine process. Failures of the process cost the attempt that ran;
neighbours that were with it in one frame run again alone, so that one bad shard never fails others.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Sequence
from typing import Any, Final

from dim_pipelines.domain.events import RowError
from dim_pipelines.errors import Cancelled, DimError, EngineFailed, InputError, NodeBusy
from dim_pipelines.node import arbitration
from dim_pipelines.node.admission import DeviceMemory
from dim_pipelines.node.engine_host import EngineHost
from dim_pipelines.node.frames import MAX_REASON, MAX_ROW_ERRORS, clean_text
from dim_pipelines.node.lanes import Computed, Item, Lane
from dim_pipelines.node.plans import ReadyStep
from dim_pipelines.telemetry.metrics import NodeMetrics

log = logging.getLogger(__name__)

CANCEL_GRACE_S: Final = 0.7
"""How long a cancelled run may go on before its process is ended; with the restart it stays under a second."""
LOAD_TIMEOUT_S: Final = 300.0
_RESTART_PAUSE_S: Final = 0.2
_MAX_RESTART_PAUSE_S: Final = 10.0


class Runner:
    """One device."""

    def __init__(
        self,
        device: str,
        host: EngineHost,
        memory: DeviceMemory,
        metrics: NodeMetrics,
        *,
        task_timeout_s: float = 600.0,
    ) -> None:
        """Keep the parts; `run` is the loop.

        Args:
            device: its id.
            host: its engine process.
            memory: its reservations.
            metrics: where to count.
            task_timeout_s: the longest a frame of tasks may take, in seconds.
        """
        self.device = device
        self.host = host
        self.memory = memory
        self.running: list[Item] = []
        self._metrics = metrics
        self._timeout_s = task_timeout_s
        self._lanes: dict[int, Lane] = {}
        self._accounts = arbitration.Accounts()
        self._wake = asyncio.Event()
        self._cancelled = asyncio.Event()
        self._engine = asyncio.Lock()
        self._loaded: set[str] = set()
        self._loaded_by = 0
        self._unwanted: set[str] = set()
        self._failed_starts = 0
        host.on_exit = self.wake

    def join(self, lane: Lane) -> None:
        """Serve a lane from now on."""
        self._lanes[lane.number] = lane

    def leave(self, lane: Lane) -> None:
        """Serve a lane no more; what it has running is dropped when it ends, or interrupted."""
        self._lanes.pop(lane.number, None)
        last = all(other.owner != lane.owner for other in self._lanes.values())
        self._accounts = arbitration.forget(self._accounts, lane.number, lane.owner, last_of_owner=last)

    def wake(self) -> None:
        """Look again: a lane has something ready."""
        self._wake.set()

    def interrupt(self) -> None:
        """Look whether what is running is still wanted: all of it may be cancelled by now."""
        self._cancelled.set()

    async def run(self) -> None:
        """Serve the lanes for ever."""
        while True:
            self._wake.clear()
            waiting = [item for lane in self._lanes.values() if (item := lane.candidate())]
            self._metrics.queued.labels(self.device).set(sum(len(lane.waiting) for lane in self._lanes.values()))
            if not waiting:
                if not await self._revived():
                    await self._wake.wait()
                continue
            number, self._accounts = arbitration.choose(self._accounts, waiting)
            lane, candidate = self._lanes[number], next(item for item in waiting if item.session == number)
            items = lane.take()
            begun = time.monotonic()
            try:
                await self._serve(lane, items)
            except Exception:  # a fault of this code must not end the device's loop, and must not lose a task
                log.exception("device %s failed outside the engine", self.device)
                _fail(lane, items, EngineFailed("the node failed"))
            spent_ms = (time.monotonic() - begun) * 1000
            self._accounts = arbitration.charge(self._accounts, candidate, spent_ms)
            if number not in self._lanes:
                self.leave(lane)  # it left while it was served, and was charged all the same

    async def prepare(self, step: ReadyStep) -> int:
        """Load a step's model ahead of its first task; give its resident bytes.

        Raises:
            EngineFailed: it cannot be loaded.
        """
        async with self._engine:
            await self._load(step)
        return self.memory.resident.get(step.key, 0)

    async def warm(self, step: ReadyStep) -> None:
        """Load a step's model and run it once on zeros, so that its memory is measured before the first task.

        Raises:
            EngineFailed: it cannot be loaded; a model that fails on zeros is warm all the same.
        """
        async with self._engine:
            await self._load(step)
            header = {"op": "warm", "model": step.key, "batch_rows": step.batch_rows}
            answer, _ = await self.host.ask(header, timeout_s=self._timeout_s)
            self.memory.measured(step.key, batch_rows=step.batch_rows, peak=_number(answer.get("peak")))

    async def time_once(self, step: ReadyStep) -> float:
        """Run a step's model once on zeros, and give the seconds that it took in the engine.

        Raises:
            EngineFailed: it cannot be loaded, or does not run on zeros.
        """
        async with self._engine:
            await self._load(step)
            header = {"op": "warm", "model": step.key, "batch_rows": step.batch_rows}
            answer, _ = await self.host.ask(header, timeout_s=self._timeout_s)
        if answer.get("failed"):
            raise EngineFailed(f"the model does not run on zeros: {clean_text(answer['failed'], 300)}")
        return max(_number(answer.get("us")), 1) / 1e6

    async def unload(self, models: Sequence[str]) -> None:
        """Take models off the device; where the caller is cancelled, they go before the next model is loaded."""
        self._unwanted.update(models)
        async with self._engine:
            await self._clear()

    async def start(self) -> None:
        """Start the engine process, or start it again.

        Raises:
            EngineFailed: it does not start.
        """
        if self._failed_starts:
            await asyncio.sleep(min(_MAX_RESTART_PAUSE_S, _RESTART_PAUSE_S * 2**self._failed_starts))
        try:
            await self.host.start()
        except DimError:
            self._failed_starts += 1
            raise
        self._failed_starts = 0
        self._metrics.engine_starts.labels(self.device).inc()

    async def _revived(self) -> bool:
        """Start a process that has gone while nothing waits, so that the next task need not; True after a try."""
        async with self._engine:
            if self.host.alive:
                return False
            try:
                await self.start()
            except DimError as error:
                log.error("device %s: the engine process does not start: %s", self.device, error.message)
        return True

    async def _serve(self, lane: Lane, items: list[Item]) -> None:
        failed = [item for item in items if item.error]
        for item in failed:
            assert item.error is not None
            _fail(lane, [item], item.error)
        items = [item for item in items if not item.error]
        if not items:
            return
        step = lane.steps[items[0].task.step]
        self.running = items
        self._cancelled.clear()
        try:
            async with self._engine:
                await self._load(step)
                begun = time.monotonic()
                answer = await self._ask(step, items)
                wall_ms = (time.monotonic() - begun) * 1000
            lane.took(wall_ms / len(items))
            computed = _read_answer(items, *answer)
        except Cancelled:
            lane.put_back(item for item in items if not item.cancelled)
            return
        except DimError as error:
            if len(items) > 1:
                log.warning("device %s: %s; %d tasks run again one by one", self.device, error.message, len(items))
                for item in items:
                    item.alone = True
                lane.put_back(item for item in items if not item.cancelled)
            else:
                log.warning("device %s: shard %d: %s", self.device, items[0].task.shard, error.message)
                _fail(lane, items, error)
            return
        finally:
            self.running = []
        self._count(step, computed)
        self.memory.measured(step.key, batch_rows=step.batch_rows, peak=max(item.peak_bytes for item in computed))
        self._metrics.device_bytes.labels(self.device).set(sum(item.reserved for item in self.memory.loaded.values()))
        lane.deliver([item for item in computed if not item.item.cancelled])

    async def _clear(self) -> None:
        """Unload what nobody has room for any more; a process that cannot do that is ended, which does it too."""
        for model in list(self._unwanted):
            if model in self._loaded and self.host.alive and self._loaded_by == self.host.starts:
                try:
                    await self.host.ask({"op": "unload", "model": model}, timeout_s=LOAD_TIMEOUT_S)
                except EngineFailed as error:
                    log.warning("device %s: %s", self.device, error.message)
                    await self.host.kill()
            self._loaded.discard(model)
            self._unwanted.discard(model)

    async def _load(self, step: ReadyStep) -> None:
        self._unwanted.discard(step.key)  # it has room again
        await self._clear()
        if not self.host.alive:
            await self.start()
        if self._loaded_by != self.host.starts:
            self._loaded.clear()  # a fresh process holds nothing
            self._loaded_by = self.host.starts
        if step.key in self._loaded:
            return
        header = {
            "op": "load",
            "model": step.key,
            "folder": str(step.model.folder),
            "description": step.model.description.model_dump(mode="json"),
        }
        answer, _ = await self.host.ask(header, timeout_s=LOAD_TIMEOUT_S)
        self._loaded.add(step.key)
        self.memory.measured(step.key, resident=_number(answer.get("resident")))

    async def _ask(self, step: ReadyStep, items: list[Item]) -> tuple[dict[str, Any], bytes]:
        """Run a frame; end the process when nobody wants the frame any more and it goes on too long."""
        parts = [item.data or b"" for item in items]
        header = {
            "op": "run",
            "model": step.key,
            "batch_rows": step.batch_rows,
            "parameters": dict(step.parameters),
            "sizes": [len(part) for part in parts],
        }
        asking = asyncio.create_task(self.host.ask(header, *parts, timeout_s=self._allowed_s(items)))
        try:
            while not asking.done():
                watching = asyncio.create_task(self._cancelled.wait())
                try:
                    await asyncio.wait({asking, watching}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    watching.cancel()
                self._cancelled.clear()
                if asking.done() or not any(item.cancelled for item in items):
                    continue
                await asyncio.wait({asking}, timeout=CANCEL_GRACE_S)
                if not asking.done():
                    await self.host.kill()
                    await asyncio.wait({asking})
                    raise Cancelled
            return asking.result()
        finally:
            if not asking.done():
                asking.cancel()
            with contextlib.suppress(asyncio.CancelledError, DimError):
                await asking

    def _allowed_s(self, items: list[Item]) -> float:
        deadlines = [item.task.deadline_ms for item in items if item.task.deadline_ms]
        if not deadlines:
            return self._timeout_s
        return max(0.001, min(self._timeout_s, min(deadlines) / 1000 - time.time()))

    def _count(self, step: ReadyStep, computed: list[Computed]) -> None:
        engine = self._metrics.engine_seconds.labels(self.device, step.model.description.engine)
        for item in computed:
            if item.error is None:
                engine.observe(item.compute_us / 1e6)
        self._metrics.rows.labels(self.device).inc(sum(item.rows for item in computed))
        self._metrics.bytes.labels("in").inc(sum(len(item.item.data or b"") for item in computed))
        self._metrics.bytes.labels("out").inc(sum(len(item.output or b"") for item in computed))


def _fail(lane: Lane, items: Sequence[Item], error: DimError) -> None:
    handed_back = isinstance(error, NodeBusy)
    lane.deliver([Computed(item, error=error, handed_back=handed_back) for item in items if not item.cancelled])


def _read_answer(items: list[Item], header: dict[str, Any], payload: bytes) -> list[Computed]:
    """Read a run's answer, which a model may have forged: nothing is believed but its shape.

    Raises:
        EngineFailed: it is malformed.
    """
    results, peak = header.get("results"), _number(header.get("peak"))
    if not isinstance(results, list) or len(results) != len(items):
        raise EngineFailed("the engine process answered for other tasks than it was given")
    computed: list[Computed] = []
    offset = 0
    for item, result in zip(items, results, strict=True):
        if not isinstance(result, dict):
            raise EngineFailed("the engine process sent a malformed answer")
        if "code" in result:
            kind = InputError if result["code"] == InputError.code else EngineFailed
            computed.append(Computed(item, error=kind(clean_text(result.get("message"), 1000))))
            continue
        size, rows, errors = _number(result.get("size")), _number(result.get("rows")), result.get("errors")
        if offset + size > len(payload) or rows > item.task.input_rows or not isinstance(errors, list):
            raise EngineFailed("the engine process sent a malformed answer")
        output = payload[offset : offset + size]
        offset += size
        row_errors = tuple([_row_error(each) for each in errors[:MAX_ROW_ERRORS]])
        computed.append(Computed(item, output, rows, row_errors, _number(result.get("us")), peak))
    return computed


def _row_error(value: object) -> RowError:
    if isinstance(value, list) and len(value) == 2:
        return RowError(_number(value[0]) & 0xFFFFFFFF, clean_text(value[1], MAX_REASON))
    raise EngineFailed("the engine process sent a malformed answer")


def _number(value: object) -> int:
    if isinstance(value, int) and 0 <= value < 1 << 63:
        return value
    raise EngineFailed("the engine process sent a malformed answer")
