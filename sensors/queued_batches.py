"""The sensor `queued_batches`: asks Dagster for a run of every batch that waits for one.

The table of batches is the truth; the cursor only says which requests were handed over already, so that a tick
asks for new ones. A lost cursor or a repeated tick does no harm: the run key `batch:request` is used once. What
is not promised: that a run which Dagster could not start is asked for again; `dim resume` raises the request.
"""

import json
from collections.abc import Sequence
from typing import Final

import dagster as dg

from dim_pipelines.assets.jobs import batch
from dim_pipelines.assets.partitions import batch_partitions
from dim_pipelines.database.engine import Database
from dim_pipelines.orchestrator.batches import Batches, BatchRow

MAX_RUNS_PER_TICK: Final = 50
"""Dagster submits about nine runs a second and gives a tick 60 s."""
MAX_WAITING: Final = 10_000
"""How many waiting batches one tick looks at; those beyond wait for the ones before them."""


@dg.sensor(
    name="queued_batches",
    job=batch,
    minimum_interval_seconds=5,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Starts a run for every batch that waits for one.",
)
def queued_batches(context: dg.SensorEvaluationContext, database: dg.ResourceParam[Database]) -> dg.SensorResult:
    """Add the partitions of waiting batches and ask for their runs, at most `MAX_RUNS_PER_TICK` a tick."""
    waiting = Batches(database).queued(limit=MAX_WAITING)
    asked = set(read_cursor(context.cursor))
    fresh = [row for row in waiting if row.run_key not in asked][:MAX_RUNS_PER_TICK]
    still = [row.run_key for row in waiting if row.run_key in asked]
    cursor = json.dumps(still + [row.run_key for row in fresh])
    if not fresh:
        reason = f"no new batch waits; {len(still)} wait for their run to begin"
        return dg.SensorResult(skip_reason=reason, cursor=cursor)
    return dg.SensorResult(
        run_requests=[request_run(row) for row in fresh],
        dynamic_partitions_requests=[batch_partitions.build_add_request([row.id for row in fresh])],
        cursor=cursor,
    )


def request_run(row: BatchRow) -> dg.RunRequest:
    """Ask for the run of one request of a batch."""
    return dg.RunRequest(
        run_key=row.run_key,
        partition_key=row.id,
        tags={"dim/batch": row.id, "dim/owner": row.owner, "dim/name": row.spec.name},
    )


def read_cursor(cursor: str | None) -> Sequence[str]:
    """Give the run keys that were asked for; none where the cursor is from somebody else."""
    try:
        value = json.loads(cursor or "[]")
    except ValueError:
        return []
    return [key for key in value if isinstance(key, str)] if isinstance(value, list) else []
