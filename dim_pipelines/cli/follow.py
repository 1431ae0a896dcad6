"""Follow a batch that another process runs: its row, and the journal segments that its head leads to."""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from dim_pipelines.errors import Cancelled, ContentError, DimError

if TYPE_CHECKING:
    from collections.abc import Callable

    from dim_pipelines.content.store import ContentStore
    from dim_pipelines.domain.cid import Cid
    from dim_pipelines.orchestrator.batches import Batches, BatchRow
    from dim_pipelines.settings import Home

POLL_S: Final = 0.5
TABLE_S: Final = 600.0
"""How long the table of a finished batch may take to be written, in seconds."""


class BatchFailed(DimError):
    """The batch failed."""

    code = "batch_failed"


@dataclass(slots=True)
class Journaled:
    """What the journal's segments say so far; each segment is read once."""

    rows: int = 0
    nodes: dict[str, int] = field(default_factory=dict)
    _shards: set[int] = field(default_factory=set)
    _seen: Cid | None = None

    @property
    def shards(self) -> int:
        """How many shards are done."""
        return len(self._shards)

    async def read(self, store: ContentStore, head: Cid) -> None:
        """Read the segments between the last one seen and `head`; what cannot be read yet is left for the next time."""
        from dim_pipelines.domain.events import Segment

        reached: Cid | None = head
        fresh: list[Segment] = []
        try:
            while reached is not None and reached != self._seen:
                segment = Segment.decode(await store.get(reached))
                fresh.append(segment)
                reached = segment.previous
        except ContentError:
            return
        for segment in fresh:
            for shard, _output, rows, node, *_usage in segment.outcomes:
                if shard not in self._shards:
                    self._shards.add(shard)
                    self.rows += rows
                    name = segment.nodes[node]
                    self.nodes[name] = self.nodes.get(name, 0) + 1
        self._seen = head


async def follow(
    batch: str,
    batches: Batches,
    store: ContentStore,
    show: Callable[[int, int | None, str], None],
    owner: str,
    *,
    why: Callable[[], str] | None = None,
    wait: Callable[[str], None] | None = None,
) -> BatchRow:
    """Wait until the batch is done and give its row.

    Args:
        batch: its id.
        batches: the table its row is in.
        store: where its journal lies.
        show: gets rows done, rows in all (None: not known), a note.
        owner: whose it is.
        why: says what keeps batches from being computed, empty for nothing; asked while no shard is done; may block.
        wait: gets that.

    Raises:
        BatchFailed: it failed; the message is the row's.
        Cancelled: somebody stopped it.
    """
    from dim_pipelines.domain.dataset import Dataset

    journal = Journaled()
    total: tuple[int, int] | None = None
    while True:
        row = await asyncio.to_thread(batches.get, batch, owner=owner)
        if row.state == "done":
            return row
        _check_alive(row)
        if row.dataset is not None and total is None:
            dataset = Dataset.decode(await store.get(row.dataset))
            total = dataset.rows, dataset.shards
        if row.head is not None:
            await journal.read(store, row.head)
        note = "waiting to be started" if row.state == "queued" else "reading the input"
        if total is not None:
            note = f"rows, {journal.shards}/{total[1]} shards"
        if wait is not None and why is not None:
            wait("" if journal.shards else await asyncio.to_thread(why))
        show(journal.rows, total[0] if total else None, note)
        await asyncio.sleep(POLL_S)


def missing_nodes(home: Home) -> Callable[[], str]:
    """Give what says why no node of the home's network takes work: Dagster holds batches back until one does."""
    from dim_pipelines.database.engine import open_database
    from dim_pipelines.discovery.node_table import NodeTable
    from dim_pipelines.dispatch.candidates import describe_wait
    from dim_pipelines.identity.membership import Membership

    membership = Membership.load(home)
    if membership is None or "run_host" not in membership.roles or os.environ.get("DIM_NODES"):
        return lambda: ""  # batches use other nodes, and ask them themselves
    table = NodeTable(open_database(home.database_url))

    def why() -> str:
        reasons: dict[str, str] = {}
        for row in table.rows(("SEEN", "VERIFIED", "ELIGIBLE", "SUSPECT")):
            paused = row.description.paused or row.description.draining
            if row.state == "ELIGIBLE" and not paused:
                return ""
            reasons[row.label] = row.reason or ("it is paused or draining" if paused else row.state)
        return describe_wait(reasons)

    return why


def _check_alive(row: BatchRow) -> None:
    if row.state == "failed":
        raise BatchFailed(f"batch {row.id} failed: {row.error}", hint=f"dim resume {row.id} continues it")
    if row.state == "cancelled":
        raise Cancelled(f"batch {row.id} was cancelled")


async def await_table(row: BatchRow, batches: Batches) -> BatchRow:
    """Wait until the joined table of a batch that is done lies in its file, and give the row, which then names it.

    Raises:
        BatchFailed: writing it failed, or it did not come within `TABLE_S`.
        Cancelled: somebody stopped it.
    """
    deadline = time.monotonic() + TABLE_S
    while not await asyncio.to_thread(_is_written, row):
        if time.monotonic() > deadline:
            message = f"batch {row.id} is done, but its table was not written within {TABLE_S:g} s"
            raise BatchFailed(message, hint="see the asset `report` of its run on Dagster's page")
        await asyncio.sleep(POLL_S)
        row = await asyncio.to_thread(batches.get, row.id, owner=row.owner)
        _check_alive(row)
    return row


def _is_written(row: BatchRow) -> bool:
    """Tell whether the file is there and not an older one of the same name; it appears whole, by a rename."""
    try:
        return row.output is not None and Path(row.output).stat().st_mtime_ns // 1_000_000 >= row.created_ms
    except OSError:
        return False


async def record_of(row: BatchRow, store: ContentStore) -> dict[str, Any]:
    """Give what `--json` prints of a batch that is done, from what its row names.

    Raises:
        BatchFailed: it is not done.
    """
    from dim_pipelines.domain.dataset import Result
    from dim_pipelines.domain.work import Provenance, Work

    if row.result is None or row.provenance is None:
        raise BatchFailed(f"batch {row.id} is {row.state}, it has no result", hint=f"dim resume {row.id}")
    result = Result.decode(await store.get(row.result))
    provenance = Provenance.decode(await store.get(row.provenance))
    work = Work.decode(await store.get(result.work))
    computed = result.rows * (provenance.shards - provenance.resumed_shards) / max(1, provenance.shards)
    return {
        "batch": row.id,
        "result_cid": str(row.result),
        "dataset_cid": str(work.dataset),
        "provenance_cid": str(row.provenance),
        "rows": result.rows,
        "dead_rows": result.dead_rows,
        "shards": result.shards,
        "resumed_shards": provenance.resumed_shards,
        "rows_per_s": round(computed / provenance.seconds, 1) if provenance.seconds > 0 else 0.0,
        "seconds": round(provenance.seconds, 3),
        "nodes": dict(sorted(provenance.nodes.items())),
        "output": row.output,
    }
