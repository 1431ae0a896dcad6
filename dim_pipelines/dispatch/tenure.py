"""Holding a batch: its epoch is taken, and its row hears that the run lives until the work in it has ended."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from dim_pipelines.dispatch.head import BatchHead, Head
from dim_pipelines.errors import StaleEpoch

HEARTBEAT_S: Final = 2.0
"""Seconds between two signs of life; who waits for a run's end takes several missing ones for its death."""

_log = logging.getLogger(__name__)


@asynccontextmanager
async def tenure(row: BatchHead, batch: str, holder: str) -> AsyncIterator[Head]:
    """Take the batch's next epoch and keep its heartbeat while the block runs.

    Args:
        row: the batch's row.
        batch: its id.
        holder: who runs it, for people; one name per process and run.

    Raises:
        StaleEpoch: a newer run has taken the batch; the block is cancelled within `HEARTBEAT_S`.
    """
    taken = await asyncio.to_thread(row.take_epoch, batch, holder)
    working = asyncio.current_task()
    assert working is not None
    overtaken: list[StaleEpoch] = []

    async def beat() -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            try:
                await asyncio.to_thread(row.heartbeat, batch, taken.epoch)
            except StaleEpoch as error:
                overtaken.append(error)
                working.cancel()
                return
            except (
                Exception
            ):  # a database that is busy now may answer the next time; a lost row shows at the next write
                _log.warning("batch %s: no sign of life could be given", batch, exc_info=True)

    beating = asyncio.create_task(beat())
    try:
        yield taken
    except asyncio.CancelledError:
        if overtaken and working.uncancel() == 0:
            raise overtaken[0] from None
        raise
    finally:
        beating.cancel()
        await asyncio.wait([beating])
