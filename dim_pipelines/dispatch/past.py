"""What earlier runs of a batch left, and which of it is still there: resume is this and nothing else."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

from dim_pipelines.content.store import ContentStore
from dim_pipelines.dispatch.done_shards import DoneShards
from dim_pipelines.dispatch.head import Batch, Head
from dim_pipelines.dispatch.journal import Journal, read_journal
from dim_pipelines.dispatch.shard_inputs import ShardInputs
from dim_pipelines.dispatch.write_ahead import read_write_ahead
from dim_pipelines.domain.cid import Cid
from dim_pipelines.domain.events import ShardDone

_HAVE: Final = 4096

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Past:
    """What earlier runs left: the journal, outcomes and files of the write-ahead, and whether outputs are gone."""

    journal: Journal
    outcomes: list[ShardDone]
    files: list[Path]
    lost: bool


async def read_past(
    store: ContentStore, batch: Batch, taken: Head, work: Cid, inputs: ShardInputs, folder: Path
) -> Past:
    """Read what earlier runs of this work left, and keep what is still there."""
    journal = await read_journal(store, taken.head, batch=batch.id, owner=batch.owner)
    if journal.work not in (None, work):
        _log.warning("batch %s: the journal is of another work (the input or a model has changed)", batch.id)
        journal = Journal()
    outcomes, files = await asyncio.to_thread(read_write_ahead, folder, batch.id, work)
    fresh = [
        each
        for each in outcomes
        if each.shard < len(inputs)
        and each.rows == inputs.rows(each.shard)
        and journal.done.add(each.shard, each.output, each.rows, each.node)
    ]
    lost = await _drop_missing(store, journal.done, len(inputs))
    return Past(journal, [each for each in fresh if each.shard not in lost], files, bool(lost))


async def _drop_missing(store: ContentStore, done: DoneShards, count: int) -> set[int]:
    """Forget shards whose output the store has not got any more; they are computed again."""
    dropped: set[int] = set()
    positions = iter(done)
    while window := list(islice(positions, _HAVE)):
        held = await store.have([done.output(shard) for shard in window])
        dropped.update(shard for shard in window if shard >= count or done.output(shard) not in held)
    for shard in dropped:
        done.drop(shard)
    return dropped
