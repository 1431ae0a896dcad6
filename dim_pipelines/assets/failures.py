"""What an asset's failure becomes in Dagster, and in the batch's row.

Three ends: a cancelled run ends CANCELED, whatever retry policy somebody put on the asset; a passing failure
of the stores is tried again where that is cheap; everything else is a Failure of one line and a hint that
Dagster does not retry, because dispatch has retried already.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import dagster as dg

from dim_pipelines.errors import DimError, NoFeasibleNode, StaleEpoch
from dim_pipelines.orchestrator.batches import Batches

MAX_RETRIES: Final = 2
"""How often a step that may be tried again is."""
RETRY_DELAY_S: Final = 5
"""Seconds before the next try."""


def to_failure(error: DimError) -> dg.Failure:
    """Give Dagster's failure: one line and the hint, with the code, and each node's reason where there are some."""
    description = error.message if not error.hint else f"{error.message}\n{error.hint}"
    metadata: dict[str, dg.MetadataValue] = {"dim/error_code": dg.MetadataValue.text(error.code)}
    if error.hint:
        metadata["dim/hint"] = dg.MetadataValue.text(error.hint)
    if isinstance(error, NoFeasibleNode) and error.reasons:
        metadata["dim/reasons"] = dg.MetadataValue.table(
            [dg.TableRecord({"node": node, "reason": reason}) for node, reason in sorted(error.reasons.items())]
        )
    return dg.Failure(description=description, metadata=metadata, allow_retries=False)


def holder(context: dg.AssetExecutionContext) -> str:
    """Name the run as the holder of a batch."""
    return f"dagster/{context.run.run_id}"


@contextmanager
def failures(context: dg.AssetExecutionContext, batches: Batches, *, retry: bool = False) -> Iterator[None]:
    """Run the body of an asset and turn what it raises into what Dagster and the batch's row should know.

    Args:
        context: the asset's; its partition is the batch.
        batches: the table of batches.
        retry: a retryable error asks Dagster to run the step again, `MAX_RETRIES` times at most.

    Raises:
        dagster.Failure: the step failed, or the run is being cancelled.
        dagster.RetryRequested: see `retry`.
    """
    batch = context.partition_key
    try:
        yield
    except DimError as error:
        if _is_cancelling(context):
            batches.cancel(batch, holder=holder(context))
        elif retry and error.retryable and context.retry_number < MAX_RETRIES:
            raise dg.RetryRequested(max_retries=MAX_RETRIES, seconds_to_wait=RETRY_DELAY_S) from error
        elif not isinstance(error, StaleEpoch):
            batches.fail(batch, error.message, holder=holder(context))
        raise to_failure(error) from error
    except dg.DagsterExecutionInterruptedError as interrupt:
        if not _is_cancelling(context):
            raise  # Ctrl-C or a shutdown: the batch stays as it is, `dim resume` goes on with it
        batches.cancel(batch, holder=holder(context))
        # Under the in-process executor an interrupt and a retry policy together would start the step again.
        raise dg.Failure(description="the batch was cancelled", allow_retries=False) from interrupt
    except Exception as error:
        batches.fail(batch, f"{type(error).__name__}: {error}", holder=holder(context))
        raise


def _is_cancelling(context: dg.AssetExecutionContext) -> bool:
    run = context.instance.get_run_by_id(context.run.run_id)
    return run is not None and run.status in (dg.DagsterRunStatus.CANCELING, dg.DagsterRunStatus.CANCELED)
