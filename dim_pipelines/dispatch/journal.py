"""The journal: a batch's outcomes as a chain of content-addressed segments, whose head the batch's row names.

A segment holds at most a second or 1,000 outcomes. Every 64th segment is preceded by a checkpoint that lists all
before it, so that a resume reads one short chain and then everything else at once, however long the batch was.
A segment is committed in this order: outputs and segment put, store synced, head moved (compare-and-set on
the epoch), write-ahead file dropped. A run whose epoch is stale can write blocks, but nothing will ever name them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from dim_pipelines.content.store import Block, ContentStore, Pin
from dim_pipelines.dispatch.done_shards import DoneShards
from dim_pipelines.dispatch.head import Batch, BatchHead
from dim_pipelines.dispatch.write_ahead import WriteAhead, remove_files
from dim_pipelines.domain.cid import DAG_CBOR, Cid
from dim_pipelines.domain.events import (
    CHECKPOINT_EVERY,
    INDEX_PAGE_SEGMENTS,
    Checkpoint,
    Segment,
    SegmentIndex,
    ShardDone,
)
from dim_pipelines.domain.format import Format
from dim_pipelines.errors import ContentMismatch

SEGMENT_OUTCOMES: Final = 1000
"""Outcomes of a segment, at most."""
SEGMENT_S: Final = 1.0
"""Seconds that an outcome waits for its segment, at most."""
_CID: Final = 36
_WINDOW: Final = 64

_log = logging.getLogger(__name__)


class SegmentList:
    """The CIDs of a journal's segments in order, 36 bytes each."""

    def __init__(self) -> None:
        self._cids = bytearray()

    def __len__(self) -> int:
        """Count the segments."""
        return len(self._cids) // _CID

    def __getitem__(self, number: int) -> Cid:
        """Give the CID of a segment by its number."""
        return Cid(bytes(self._cids[number * _CID : (number + 1) * _CID]))

    def append(self, cid: Cid) -> None:
        """Add the next segment."""
        self._cids += cid


@dataclass(slots=True)
class Journal:
    """What a journal says.

    Attributes:
        work: the work whose outcomes these are; None for an empty journal.
        done: the done shards.
        head: the newest segment.
        segments: all segments.
        checkpoint: the newest checkpoint.
        sealed: the sealed index pages of that checkpoint.
    """

    work: Cid | None = None
    done: DoneShards = field(default_factory=DoneShards)
    head: Cid | None = None
    segments: SegmentList = field(default_factory=SegmentList)
    checkpoint: Cid | None = None
    sealed: list[Cid] = field(default_factory=list)


async def read_journal(store: ContentStore, head: Cid | None, *, batch: str, owner: str) -> Journal:
    """Read a journal from its head: the one way to resume, whatever ended the run before.

    Args:
        store: where the segments are.
        head: the newest segment; None: an empty journal.
        batch: the batch the journal must be of.
        owner: the owner it must belong to.

    Raises:
        ContentMismatch: a segment is of another batch, owner or work, or the chain has a gap.
        ContentError: a segment cannot be read.
    """
    journal = Journal(head=head)
    if head is None:
        return journal
    newest = Segment.decode(await store.get(head))
    journal.work, journal.checkpoint = newest.work, newest.checkpoint
    listed = 0
    if newest.checkpoint is not None:
        checkpoint = Checkpoint.decode(await store.get(newest.checkpoint))
        listed = checkpoint.count
        journal.sealed = list(checkpoint.sealed)
        async for page in store.get_many(checkpoint.sealed):
            for cid in SegmentIndex.decode(page.data).segments:
                journal.segments.append(cid)
        for cid in checkpoint.tail:
            journal.segments.append(cid)
        if len(journal.segments) != listed:
            raise ContentMismatch(
                f"checkpoint {newest.checkpoint} says {listed} segments, lists {len(journal.segments)}"
            )
    chain = [(head, newest)]
    while chain[-1][1].number > listed:
        previous = chain[-1][1].previous
        if previous is None:
            raise ContentMismatch(f"segment {chain[-1][0]} names no segment before it")
        chain.append((previous, Segment.decode(await store.get(previous))))
    for start in range(0, listed, _WINDOW):
        window = [journal.segments[number] for number in range(start, min(start + _WINDOW, listed))]
        number = start
        async for block in store.get_many(window):
            _replay(journal, Segment.decode(block.data), number, batch, owner)
            number += 1
    for number, (cid, segment) in enumerate(reversed(chain), start=listed):
        journal.segments.append(cid)
        _replay(journal, segment, number, batch, owner)
    return journal


def _replay(journal: Journal, segment: Segment, number: int, batch: str, owner: str) -> None:
    if (segment.batch, segment.owner, segment.number, segment.work) != (batch, owner, number, journal.work):
        raise ContentMismatch(
            f"journal segment {number} of batch {batch} belongs to batch {segment.batch} of {segment.owner}, "
            f"number {segment.number}, work {segment.work}"
        )
    for shard, output, rows, node, *_usage in segment.outcomes:
        journal.done.add(shard, output, rows, segment.nodes[node])


class JournalWriter:
    """Writes one run's outcomes; `run` must be running for anything to be committed."""

    def __init__(
        self,
        store: ContentStore,
        row: BatchHead,
        batch: Batch,
        epoch: int,
        work: Cid,
        *,
        journal: Journal,
        write_ahead: WriteAhead,
        pin: Pin,
    ) -> None:
        """Go on with a journal.

        Args:
            store: where segments go.
            row: the batch's row, whose head moves.
            batch: the batch.
            epoch: this run's epoch.
            work: what the outcomes are of.
            journal: what earlier runs left; an empty one for a new work.
            write_ahead: the file that holds what is not in a segment yet.
            pin: holds every segment and checkpoint.
        """
        self._store, self._row, self._batch, self._epoch, self._work = store, row, batch, epoch, work
        self._write_ahead, self._pin = write_ahead, pin
        self._segments, self._sealed = journal.segments, list(journal.sealed)
        self._checkpoint = journal.checkpoint
        self.head = journal.head
        self._pending: list[ShardDone] = []
        self._leftovers: list[Path] = []
        self._full = asyncio.Event()
        self._closing = False
        self._committing = asyncio.Lock()
        self._writing = asyncio.Lock()

    async def append(self, outcomes: Sequence[ShardDone]) -> None:
        """Take outcomes whose outputs are in the store; on return they survive the death of this process."""
        # whole or not at all: a caller that is cancelled half-way would leave a line without its pending outcome
        await asyncio.shield(self._append(outcomes))

    async def _append(self, outcomes: Sequence[ShardDone]) -> None:
        async with self._writing:
            await asyncio.to_thread(self._write_ahead.append, outcomes)
            self._pending.extend(outcomes)
        if len(self._pending) >= SEGMENT_OUTCOMES:
            self._full.set()

    def adopt(self, outcomes: Sequence[ShardDone], files: Sequence[Path]) -> None:
        """Take outcomes from write-ahead files of earlier runs; the files go once the outcomes are in a segment."""
        self._pending.extend(outcomes)
        self._leftovers.extend(files)

    async def run(self) -> None:
        """Commit a segment at least every `SEGMENT_S` while there are outcomes, until `close`.

        Raises:
            StaleEpoch: a newer run has taken the batch.
            ContentError: the store failed.
        """
        while not self._closing:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SEGMENT_S):
                    await self._full.wait()
            if self._pending or self._leftovers:
                await self.commit()
        await self.commit()

    async def release(self) -> None:
        """Let go of the write-ahead file, which stays where it is; nothing may be appended afterwards."""
        async with self._writing:
            await asyncio.to_thread(self._write_ahead.close)

    def close(self) -> None:
        """Let `run` commit what is left and return."""
        self._closing = True
        self._full.set()

    async def commit(self) -> None:
        """Commit everything taken so far.

        Raises:
            StaleEpoch: a newer run has taken the batch; nothing names what was written.
            ContentError: the store failed.
        """
        async with self._committing:
            if not self._closing:
                self._full.clear()
            if self._pending:
                async with self._writing:  # an outcome is in the closed part exactly when it is taken here
                    outcomes, self._pending = self._pending, []
                    part = await asyncio.to_thread(self._write_ahead.rotate)
                for start in range(0, len(outcomes), SEGMENT_OUTCOMES):
                    await self._write(outcomes[start : start + SEGMENT_OUTCOMES])
                await asyncio.to_thread(self._write_ahead.drop, part)
            leftovers, self._leftovers = self._leftovers, []
            if leftovers:
                await asyncio.to_thread(remove_files, leftovers)

    async def _write(self, outcomes: list[ShardDone]) -> None:
        number = len(self._segments)
        if number and number % CHECKPOINT_EVERY == 0:
            await self._write_checkpoint(number)
        segment = make_segment(
            self._batch, self._epoch, number, self._work, outcomes, previous=self.head, checkpoint=self._checkpoint
        )
        cid = await self._put(segment)
        await self._store.sync()
        await asyncio.to_thread(self._row.move_head, self._batch.id, self._epoch, cid)
        self._segments.append(cid)
        self.head = cid
        _log.debug("batch %s: segment %d with %d outcomes", self._batch.id, number, len(outcomes))

    async def _write_checkpoint(self, count: int) -> None:
        while (len(self._sealed) + 1) * INDEX_PAGE_SEGMENTS <= count:
            start = len(self._sealed) * INDEX_PAGE_SEGMENTS
            page = SegmentIndex(segments=[self._segments[start + offset] for offset in range(INDEX_PAGE_SEGMENTS)])
            self._sealed.append(await self._put(page))
        tail = [self._segments[number] for number in range(len(self._sealed) * INDEX_PAGE_SEGMENTS, count)]
        self._checkpoint = await self._put(Checkpoint(count=count, sealed=list(self._sealed), tail=tail))

    async def _put(self, value: Format) -> Cid:
        data = value.encode()
        cid = Cid.of(DAG_CBOR, data)
        await self._store.put([Block(cid, data)], pin=self._pin)
        return cid


def make_segment(
    batch: Batch,
    epoch: int,
    number: int,
    work: Cid,
    outcomes: Sequence[ShardDone],
    *,
    previous: Cid | None,
    checkpoint: Cid | None,
) -> Segment:
    """Make a segment: node names once, outcomes as tuples that name them by position."""
    places: dict[str, int] = {}
    rows = []
    for outcome in outcomes:
        place = places.setdefault(outcome.node, len(places))
        usage = outcome.usage
        rows.append(
            (
                outcome.shard,
                outcome.output,
                outcome.rows,
                place,
                usage.rows,
                usage.bytes_in,
                usage.bytes_out,
                usage.compute_ms,
                usage.peak_bytes,
            )
        )
    return Segment(
        batch=batch.id,
        owner=batch.owner,
        epoch=epoch,
        number=number,
        work=work,
        previous=previous,
        checkpoint=checkpoint,
        nodes=list(places),
        outcomes=rows,
    )
