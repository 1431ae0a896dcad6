"""Collaborative: one model, the shards spread over the nodes, the outputs put one behind the other."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from dim_pipelines.domain.batch import BatchSpec
from dim_pipelines.domain.dataset import Dataset
from dim_pipelines.domain.work import PlanStep
from dim_pipelines.errors import ConfigurationError
from dim_pipelines.patterns.pattern import PlannedModel
from dim_pipelines.scheduling.sharding import choose_batch_rows


class Collaborative:
    """One step; output shard i is the model over input shard i."""

    name = "collaborative"

    def steps(self, spec: BatchSpec, models: Sequence[PlannedModel], dataset: Dataset) -> tuple[PlanStep, ...]:
        """Plan the one step.

        Raises:
            ConfigurationError: there is not exactly one model, or it takes smaller micro-batches than the spec states.
        """
        if len(models) != 1:
            raise ConfigurationError(f"the pattern {self.name!r} takes one model, found {len(models)}")
        model = models[0]
        most = model.description.max_batch_rows
        if spec.batch_rows is not None and spec.batch_rows > most:
            raise ConfigurationError(
                f"batch_rows is {spec.batch_rows}, the model {model.description.name} takes at most {most}",
                hint=f"set batch_rows to {most} or less",
            )
        step = PlanStep(
            model=model.cid,
            parameters=spec.models[0].parameters,
            batch_rows=choose_batch_rows(spec.batch_rows, most),
            columns=model.description.columns,
            signatures=model.signatures,
        )
        return (step,)

    def reduce(self, outputs: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
        """Give the output of the one step."""
        (output,) = outputs
        return output
