"""Holding a batch: signs of life while the block runs, and its end when a newer run comes."""

from __future__ import annotations

import asyncio

import pytest

from dim_pipelines.dispatch import tenure as module
from dim_pipelines.dispatch.tenure import tenure
from dim_pipelines.errors import StaleEpoch
from dim_pipelines.testing.batches import MemoryBatchHead


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HEARTBEAT_S", 0.005)


async def _beats(row: MemoryBatchHead, count: int) -> None:
    for _ in range(12000):
        if row.rows["b"].beats >= count:
            return
        await asyncio.sleep(0.005)
    pytest.fail("no sign of life")


async def test_the_row_hears_that_the_run_lives_until_the_block_ends() -> None:
    row = MemoryBatchHead("b")
    async with tenure(row, "b", "me") as taken:
        assert (taken.epoch, row.rows["b"].holder) == (1, "me")
        await _beats(row, 2)
    assert len(asyncio.all_tasks()) == 1


async def test_a_newer_run_ends_the_block() -> None:
    row = MemoryBatchHead("b")
    with pytest.raises(StaleEpoch, match="newer run"):
        async with tenure(row, "b", "me"):
            row.take_epoch("b", "another")
            await asyncio.sleep(600)
    task = asyncio.current_task()
    assert task is not None and task.cancelling() == 0


async def test_cancelling_stays_cancelling() -> None:
    row = MemoryBatchHead("b")

    async def work() -> None:
        async with tenure(row, "b", "me"):
            await asyncio.sleep(600)

    task = asyncio.create_task(work())
    await _beats(row, 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_row_that_cannot_be_reached_for_a_moment_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    row = MemoryBatchHead("b")
    answers = [OSError("the database is busy")]
    beat = row.heartbeat

    def heartbeat(batch: str, epoch: int) -> None:
        if answers:
            raise answers.pop()
        beat(batch, epoch)

    row.heartbeat = heartbeat  # type: ignore[method-assign]
    async with tenure(row, "b", "me"):
        await _beats(row, 1)
    assert "no sign of life" in caplog.text
