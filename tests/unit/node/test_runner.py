"""The device's loop against an engine process of straw: deaths, forgeries, cancels, sharing."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import pytest
from prometheus_client import CollectorRegistry

from dim_pipelines.domain.cid import RAW, Cid
from dim_pipelines.domain.events import Task
from dim_pipelines.domain.model import ModelDescription, ModelInput
from dim_pipelines.errors import ContentNotFound, EngineFailed
from dim_pipelines.node import runner as runner_module
from dim_pipelines.node.admission import DeviceMemory
from dim_pipelines.node.engine_host import EngineHost
from dim_pipelines.node.frames import MAX_REASON, MAX_ROW_ERRORS
from dim_pipelines.node.lanes import Computed, Item, Lane
from dim_pipelines.node.model_cache import CachedModel
from dim_pipelines.node.plans import ReadyStep
from dim_pipelines.node.runner import Runner
from dim_pipelines.telemetry.metrics import NodeMetrics

Answer = Callable[[dict[str, Any], tuple[bytes, ...]], Awaitable[tuple[dict[str, Any], bytes]]]


async def honest(header: dict[str, Any], payload: tuple[bytes, ...]) -> tuple[dict[str, Any], bytes]:
    if header["op"] == "run":
        results = [{"size": len(part), "rows": 1, "errors": [], "us": 5} for part in payload]
        return {"ok": True, "results": results, "peak": 7}, b"".join(payload)
    return {"ok": True, "resident": 3, "peak": 0}, b""


class StrawHost:
    """Answers as it is told; `kill` makes what is under way fail."""

    def __init__(self, answer: Answer = honest) -> None:
        self.answer = answer
        self.alive = False
        self.starts = 0
        self.asked: list[dict[str, Any]] = []
        self.on_exit: Callable[[], None] = lambda: None
        self.broken = 0
        self._killed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def start(self) -> None:
        if self.broken:
            self.broken -= 1
            raise EngineFailed("it does not start")
        self.starts += 1
        self.alive = True
        self._killed = asyncio.get_running_loop().create_future()

    async def ask(self, header: dict[str, Any], *payload: bytes, timeout_s: float) -> tuple[dict[str, Any], bytes]:
        self.asked.append(header | {"timeout_s": timeout_s})
        asking = asyncio.ensure_future(self.answer(header, payload))
        await asyncio.wait({asking, self._killed}, return_when=asyncio.FIRST_COMPLETED)
        if self._killed.done():
            asking.cancel()
            raise EngineFailed("killed")
        return asking.result()

    async def kill(self) -> None:
        self.alive = False
        if not self._killed.done():
            self._killed.set_result(None)

    def runs(self) -> list[int]:
        return [len(header["sizes"]) for header in self.asked if header["op"] == "run"]


def make_lane(owner: str = "o", weight: int = 1, name: str = "m") -> tuple[Lane, list[Computed]]:
    tensor = ModelInput(name="x", datatype="FP32", shape=())
    description = ModelDescription(name=name, version="1", engine="echo", licence="MIT", inputs=(tensor,))
    model = CachedModel(Cid.of(RAW, name.encode()), Path("/models"), description, 0)
    answered: list[Computed] = []
    return Lane(owner, weight, [ReadyStep(model, {}, 4)], answered.extend), answered


def items(count: int, first: int = 0) -> list[Item]:
    return [Item(Task(n, 0, (Cid.of(RAW, b""),), 1), b"%d" % n) for n in range(first, first + count)]


@pytest.fixture
async def serve() -> AsyncIterator[Callable[..., tuple[Runner, StrawHost]]]:
    loops: list[asyncio.Task[None]] = []

    def start(answer: Answer = honest, *lanes: Lane) -> tuple[Runner, StrawHost]:
        host = StrawHost(answer)
        runner = Runner("cpu", cast(EngineHost, host), DeviceMemory(1000), NodeMetrics(CollectorRegistry()))
        for lane in lanes:
            runner.join(lane)
        loops.append(asyncio.create_task(runner.run()))
        return runner, host

    yield start
    for loop in loops:
        loop.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await loop


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - what is looked at has no event
            await asyncio.sleep(0.001)


async def test_tasks_are_computed_in_order_and_counted(serve: Any) -> None:
    lane, answered = make_lane()
    runner, host = serve(honest, lane)
    lane.waiting.extend(items(40))
    runner.wake()
    await until(lambda: len(answered) == 40)
    assert [item.output for item in answered] == [b"%d" % n for n in range(40)]
    assert host.runs()[0] == 1 and max(host.runs()) > 1 and runner.memory.resident[lane.steps[0].key] == 3
    assert runner.memory.peak[lane.steps[0].key, 4] == 7


async def test_a_shard_that_kills_the_process_fails_alone(serve: Any) -> None:
    lane, answered = make_lane()
    lane.mean_ms = 1.0

    async def deadly(header: dict[str, Any], payload: tuple[bytes, ...]) -> tuple[dict[str, Any], bytes]:
        if header["op"] == "run" and b"3" in payload:
            host.alive = False
            raise EngineFailed("SIGSEGV")
        return await honest(header, payload)

    runner, host = serve(deadly, lane)
    lane.waiting.extend(items(6))
    runner.wake()
    await until(lambda: len(answered) == 6)
    failed = [item.item.task.shard for item in answered if item.error]
    assert failed == [3] and host.runs()[:2] == [6, 1] and host.starts >= 3


@pytest.mark.parametrize(
    "forged",
    [
        {"results": []},
        {"results": "x"},
        {"results": [7]},
        {"results": [{"size": 99, "rows": 1, "errors": [], "us": 1}]},
        {"results": [{"size": -1, "rows": 1, "errors": [], "us": 1}]},
        {"results": [{"size": 1, "rows": 2, "errors": [], "us": 1}]},
        {"results": [{"size": 1, "rows": 1, "errors": [3], "us": 1}]},
        {"results": [{"size": 1, "rows": 1, "errors": [[1]], "us": "1"}]},
        {"results": [{"size": 1, "rows": 1, "errors": {}, "us": 1}]},
        {},
    ],
)
async def test_forged_answers_are_engine_failed(serve: Any, forged: dict[str, Any]) -> None:
    lane, answered = make_lane()

    async def forge(header: dict[str, Any], payload: tuple[bytes, ...]) -> tuple[dict[str, Any], bytes]:
        answer, data = await honest(header, payload)
        return ({"ok": True, "peak": 0} | forged, data) if header["op"] == "run" else (answer, data)

    runner, _ = serve(forge, lane)
    lane.waiting.extend(items(1))
    runner.wake()
    await until(lambda: answered)
    assert isinstance(answered[0].error, EngineFailed)


@pytest.mark.parametrize(
    "result",
    [
        {"code": "engine_failed", "message": "\ud800" * 2000},
        {"size": 1, "rows": 0, "errors": [[0, "\udfff" * 2000]] * 5000, "us": 1},
    ],
)
async def test_what_an_engine_writes_is_text_that_can_be_sent(serve: Any, result: dict[str, Any]) -> None:
    lane, answered = make_lane()

    async def forge(header: dict[str, Any], payload: tuple[bytes, ...]) -> tuple[dict[str, Any], bytes]:
        answer, data = await honest(header, payload)
        return (answer | {"results": [result]}, data) if header["op"] == "run" else (answer, data)

    runner, _ = serve(forge, lane)
    lane.waiting.extend(items(1))
    runner.wake()
    await until(lambda: answered)
    (computed,) = answered
    texts = [computed.error.message] if computed.error else [error.reason for error in computed.row_errors]
    assert {len(text.encode()) for text in texts} <= {1000, MAX_REASON} and len(texts) <= MAX_ROW_ERRORS


async def test_a_failing_shard_and_a_missing_one_do_not_stop_the_loop(serve: Any) -> None:
    lane, answered = make_lane()

    async def mixed(header: dict[str, Any], payload: tuple[bytes, ...]) -> tuple[dict[str, Any], bytes]:
        if header["op"] == "run" and payload == (b"0",):
            return {"ok": True, "peak": 0, "results": [{"code": "input", "message": "bad rows"}]}, b""
        return await honest(header, payload)

    runner, _ = serve(mixed, lane)
    some = items(3)
    some[1].data, some[1].error = None, ContentNotFound("gone")
    lane.waiting.extend(some)
    runner.wake()
    await until(lambda: len(answered) == 3)
    assert [item.error.code if item.error else "" for item in answered] == ["input", "content_not_found", ""]


async def test_a_cancelled_run_is_interrupted_and_its_neighbours_run_again(
    serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner_module, "CANCEL_GRACE_S", 0.02)
    lane, answered = make_lane()
    lane.mean_ms = 1.0
    hanging = asyncio.Event()

    async def hang(header: dict[str, Any], payload: tuple[bytes, ...]) -> tuple[dict[str, Any], bytes]:
        if header["op"] == "run" and b"0" in payload:
            hanging.set()
            await asyncio.sleep(60)
        return await honest(header, payload)

    runner, host = serve(hang, lane)
    some = items(3)
    lane.waiting.extend(some)
    runner.wake()
    await hanging.wait()
    some[0].cancelled = True
    runner.interrupt()
    await until(lambda: len(answered) == 2)
    assert [item.item.task.shard for item in answered] == [1, 2] and host.starts == 2


async def test_a_short_run_is_left_to_end_when_cancelled(serve: Any) -> None:
    lane, answered = make_lane()
    go = asyncio.Event()

    async def wait(header: dict[str, Any], payload: tuple[bytes, ...]) -> tuple[dict[str, Any], bytes]:
        if header["op"] == "run":
            await go.wait()
        return await honest(header, payload)

    runner, host = serve(wait, lane)
    some = items(2)
    lane.waiting.extend(some)
    runner.wake()
    await until(lambda: runner.running)
    some[0].cancelled = True
    runner.interrupt()
    go.set()
    await until(lambda: answered)
    assert [item.item.task.shard for item in answered] == [1] and host.starts == 1


async def test_a_process_that_does_not_start_costs_attempts_until_it_does(
    serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner_module, "_RESTART_PAUSE_S", 0.001)
    lane, answered = make_lane()
    runner, host = serve(honest, lane)
    host.broken = 2
    lane.waiting.extend(items(4))
    runner.wake()
    await until(lambda: len(answered) == 4)
    assert [bool(item.error) for item in answered].count(True) <= 2 and not answered[-1].error


async def test_an_idle_process_that_dies_is_started_again(serve: Any) -> None:
    _runner, host = serve()
    await until(lambda: host.starts == 1)
    host.alive = False
    host.on_exit()
    await until(lambda: host.starts == 2)


async def test_owners_take_turns_whatever_they_have_waiting(serve: Any) -> None:
    one, answered_one = make_lane("ann")
    two, answered_two = make_lane("bob")

    async def slow(header: dict[str, Any], payload: tuple[bytes, ...]) -> tuple[dict[str, Any], bytes]:
        await asyncio.sleep(0.005 * len(payload))
        return await honest(header, payload)

    runner, _ = serve(slow, one, two)
    one.waiting.extend(items(60))
    two.waiting.extend(items(20))
    runner.wake()
    await until(lambda: len(answered_two) == 20)
    assert 10 <= len(answered_one) <= 40
    runner.leave(two)
    await until(lambda: len(answered_one) == 60)


async def test_models_are_loaded_once_per_process_and_unloaded_on_request(serve: Any) -> None:
    lane, answered = make_lane()
    runner, host = serve(honest, lane)
    assert await runner.prepare(lane.steps[0]) == 3
    await runner.warm(lane.steps[0])
    assert [header["op"] for header in host.asked] == ["load", "warm"]
    await runner.unload([lane.steps[0].key, "unknown"])
    await runner.prepare(lane.steps[0])
    assert [header["op"] for header in host.asked] == ["load", "warm", "unload", "load"]
    await host.kill()
    lane.waiting.extend(items(1))
    runner.wake()
    await until(lambda: answered)
    assert [header["op"] for header in host.asked][-2:] == ["load", "run"]
