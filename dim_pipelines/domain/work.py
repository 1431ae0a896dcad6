"""What determines a result, what a node is told to do, and where a result came from."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from dim_pipelines.domain.cid import Cid
from dim_pipelines.domain.format import Format, Value


class ModelUse(Value):
    """A model and the parameters it is called with."""

    model: Cid
    parameters: dict[str, Any] = Field(default_factory=dict)


class Work(Format):
    """Everything that determines the result, and nothing else: same work, same result CID.

    Attributes:
        models: the models in the pattern's order.
        pattern: the pattern's name.
        columns: the dataset columns given to the model.
        batch_rows: rows of a micro-batch; part of the numerics (grid within a shard).
        numerics: the numerics class, or `any`.
        dataset: CID of the `Dataset`.
    """

    kind_name: ClassVar[str] = "dim/work"
    models: tuple[ModelUse, ...]
    pattern: str
    columns: tuple[str, ...]
    batch_rows: int
    numerics: str
    dataset: Cid


class PlanStep(Value):
    """One step of the plan: run `model` over the input columns.

    Attributes:
        signatures: CIDs of detached signatures over the model's CID.
    """

    model: Cid
    parameters: dict[str, Any] = Field(default_factory=dict)
    batch_rows: int
    columns: tuple[str, ...]
    signatures: tuple[Cid, ...] = ()


class Plan(Format):
    """The steps of a batch, as a node reads them; a task names a step by its position."""

    kind_name: ClassVar[str] = "dim/plan"
    work: Cid
    numerics: str
    steps: tuple[PlanStep, ...]


class Provenance(Format):
    """Where a result came from; not part of its identity.

    Attributes:
        submission: the batch's spec as submitted (plain data).
        source: the input's URI as the user wrote it.
        licences: SPDX expressions of the models.
        nodes: node name → shards it computed.
        seconds: wall time of the run that finished the batch.
        errors: CID of the dead-letter table (Arrow IPC: row, reason, file), when rows are dead.
        journal: CID of the journal's head.
        finished_ms: Unix time in milliseconds.
    """

    kind_name: ClassVar[str] = "dim/provenance"
    result: Cid
    batch: str
    owner: str
    submission: dict[str, Any]
    source: str
    licences: tuple[str, ...]
    nodes: dict[str, int]
    shards: int
    resumed_shards: int
    retries: int
    seconds: float
    finished_ms: int
    journal: Cid | None = None
    errors: Cid | None = None
