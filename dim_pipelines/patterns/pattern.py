"""The protocol of a pattern, and the plan that one makes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import pyarrow as pa

from dim_pipelines.domain.batch import BatchSpec
from dim_pipelines.domain.cid import Cid
from dim_pipelines.domain.dataset import Dataset
from dim_pipelines.domain.model import ModelDescription
from dim_pipelines.domain.work import ModelUse, Plan, PlanStep, Work
from dim_pipelines.errors import ConfigurationError


class PlannedModel(Protocol):
    """What a pattern needs to know of a model; `content.models.ModelPackage` is one."""

    @property
    def cid(self) -> Cid:
        """The package's CID."""
        ...

    @property
    def description(self) -> ModelDescription:
        """What the package takes and gives."""
        ...

    @property
    def signatures(self) -> tuple[Cid, ...]:
        """CIDs of detached signatures over the package's CID."""
        ...


@dataclass(frozen=True, slots=True)
class Planned:
    """What a batch computes: its identity, and the plan that nodes read."""

    work: Work
    plan: Plan


@runtime_checkable
class Pattern(Protocol):
    """How models and rows combine. Pure: the same arguments, the same answer."""

    name: str

    def steps(self, spec: BatchSpec, models: Sequence[PlannedModel], dataset: Dataset) -> tuple[PlanStep, ...]:
        """Plan the steps that every shard goes through, in order.

        Args:
            spec: the batch as submitted.
            models: the models of the spec, in its order.
            dataset: what the steps run over.

        Raises:
            ConfigurationError: the models do not suit the pattern or the dataset.
        """
        ...

    def reduce(self, outputs: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
        """Make the result's rows of one shard from the outputs of its steps, in the order of the steps."""
        ...


def make_plan(
    pattern: Pattern, spec: BatchSpec, models: Sequence[PlannedModel], dataset_cid: Cid, dataset: Dataset, numerics: str
) -> Planned:
    """Make a batch's work and plan.

    Args:
        pattern: plans the steps.
        spec: the batch as submitted.
        models: the models of the spec, in its order.
        dataset_cid: CID of the dataset's root.
        dataset: the root.
        numerics: the numerics class the batch runs in, or `any`.

    Raises:
        ConfigurationError: as `Pattern.steps`; or a step reads a column that the dataset lacks.
    """
    steps = pattern.steps(spec, models, dataset)
    there = [column.name for column in dataset.columns]
    for step in steps:
        missing = [name for name in step.columns if name not in there]
        if missing:
            raise ConfigurationError(
                f"the dataset lacks the column {missing[0]!r} that the model reads", hint=f"it has {', '.join(there)}"
            )
    work = Work(
        models=tuple(ModelUse(model=step.model, parameters=step.parameters) for step in steps),
        pattern=pattern.name,
        columns=tuple(dict.fromkeys(name for step in steps for name in step.columns)),
        batch_rows=max(step.batch_rows for step in steps),
        numerics=numerics,
        dataset=dataset_cid,
    )
    return Planned(work, Plan(work=work.cid(), numerics=numerics, steps=steps))
