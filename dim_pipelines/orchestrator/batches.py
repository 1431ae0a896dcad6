"""The table of batches: one row per batch, and the epoch that fences its runs.

A batch is `queued` (with `request` 0 it waits for a person), `running`, `done`, `failed` or `cancelled`. Every write
of a run names the epoch that the run took, so a run that was overtaken can change nothing. Methods block for some
milliseconds; asynchronous callers use a thread.
"""

from __future__ import annotations

import builtins
import json
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import RowMapping, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from dim_pipelines.database.engine import Database
from dim_pipelines.database.tables import batches
from dim_pipelines.dispatch.head import Batch, Head
from dim_pipelines.domain.batch import BatchSpec
from dim_pipelines.domain.cid import Cid
from dim_pipelines.errors import InputError, StaleEpoch

_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True, slots=True)
class BatchRow:
    """A row of the table.

    Attributes:
        spec: the spec as submitted; never changed.
        state: queued | running | done | failed | cancelled.
        request: how often a run was asked for; 0: not yet. `ID:request` is the run key of Dagster's sensor.
        epoch: the fencing number of the newest run; 0 before the first.
        holder: who runs that epoch, for people.
        numerics: the numerics class that the first plan chose.
        head: the newest journal segment.
        dataset, errors: what ingest made of the input: the dataset, and the table of its bad rows.
        result, provenance: of a finished batch.
        error: why a failed batch failed, one line.
        run_id: the Dagster run that last took the batch.
        output: where the joined table is to be written, or was.
        created_ms, updated_ms: Unix milliseconds; `updated_ms` is also the heartbeat of a run.
    """

    id: str
    owner: str
    spec: BatchSpec
    state: str
    request: int
    epoch: int
    holder: str | None
    numerics: str | None
    head: Cid | None
    dataset: Cid | None
    errors: Cid | None
    result: Cid | None
    provenance: Cid | None
    error: str | None
    run_id: str | None
    output: str | None
    created_ms: int
    updated_ms: int

    @property
    def batch(self) -> Batch:
        """The row as dispatch takes it."""
        return Batch(self.id, self.owner, self.spec)

    @property
    def run_key(self) -> str:
        """The run key of the sensor: it changes only when a person or a recovery asks for another run."""
        return f"{self.id}:{self.request}"


class Batches:
    """The batches of a database; implements `dispatch.head.BatchHead`."""

    def __init__(self, database: Database) -> None:
        """Use an open database."""
        self._database = database

    def submit(
        self,
        spec: BatchSpec,
        *,
        owner: str = "local",
        batch_id: str | None = None,
        run: bool = True,
        output: str | None = None,
    ) -> BatchRow:
        """Write a batch's row.

        Args:
            spec: what to run.
            owner: the member it belongs to.
            batch_id: its id; made up when left out. The same id with the same spec and owner is the same batch.
            run: ask for a run at once; without it the batch waits until somebody materializes or resumes it.
            output: where the joined table is wanted.

        Raises:
            InputError: the id is malformed, or taken by another batch.
        """
        chosen = batch_id or secrets.token_hex(6)
        if not _ID.fullmatch(chosen):
            raise InputError(
                f"not a batch id: {chosen!r}", hint="letters, digits, '.', '_' and '-', at most 100 characters"
            )
        now = _now_ms()
        text = _spec_text(spec)
        values = {
            "id": chosen,
            "owner": owner,
            "spec": text,
            "state": "queued",
            "request": 1 if run else 0,
            "epoch": 0,
            "output": output,
            "created_ms": now,
            "updated_ms": now,
        }
        with self._database.write() as connection:
            try:
                connection.execute(insert(batches).values(values))
            except IntegrityError as error:
                connection.rollback()
                row = self._find(chosen)
                if row is None or row["owner"] != owner or row["spec"] != text:
                    raise InputError(f"batch {chosen} exists already with another spec or owner") from error
        return self.get(chosen, owner=owner)

    def get(self, batch: str, *, owner: str = "local") -> BatchRow:
        """Read one batch of an owner.

        Raises:
            InputError: the owner has no such batch.
        """
        row = self._find(batch)
        if row is None or row["owner"] != owner:
            raise InputError(
                f"there is no batch {batch!r}",
                hint="ids are what dim submit and dim infer print; DIM_HOME must be theirs",
            )
        return _read(row)

    def list(self, *, owner: str = "local", limit: int = 100) -> builtins.list[BatchRow]:
        """Read an owner's newest batches, newest first."""
        query = select(batches).where(batches.c.owner == owner)
        query = query.order_by(batches.c.created_ms.desc(), batches.c.id).limit(limit)
        with self._database.read() as connection:
            return [_read(row) for row in connection.execute(query).mappings()]

    def queued(self, *, limit: int = 100) -> builtins.list[BatchRow]:
        """Read the batches of all owners for which a run was asked and none has begun: larger priority, then older."""
        query = select(batches).where(batches.c.state == "queued", batches.c.request > 0)
        with self._database.read() as connection:
            rows = [_read(row) for row in connection.execute(query).mappings()]
        rows.sort(key=lambda row: (-row.spec.priority, row.created_ms, row.id))
        return rows[:limit]

    def resume(self, batch: str, *, owner: str = "local") -> BatchRow:
        """Ask for one more run of a batch that is not done.

        Raises:
            InputError: there is no such batch.
        """
        self.get(batch, owner=owner)
        statement = (
            update(batches)
            .where(batches.c.id == batch, batches.c.state != "done")
            .values(updated_ms=_now_ms(), state="queued", request=batches.c.request + 1, error=None)
        )
        with self._database.write() as connection:
            connection.execute(statement)
        return self.get(batch, owner=owner)

    def take_epoch(self, batch: str, holder: str) -> Head:
        """Raise the epoch by one in one statement; see `BatchHead`.

        Raises:
            InputError: there is no such batch.
        """
        statement = (
            update(batches)
            .where(batches.c.id == batch)
            .values(epoch=batches.c.epoch + 1, holder=holder[:200], state="running", error=None, updated_ms=_now_ms())
            .returning(batches.c.epoch, batches.c.head_cid, batches.c.numerics)
        )
        with self._database.write() as connection:
            row = connection.execute(statement).one_or_none()
        if row is None:
            raise InputError(f"there is no batch {batch!r}")
        return Head(row.epoch, _cid(row.head_cid), row.numerics)

    def keep_numerics(self, batch: str, epoch: int, numerics: str) -> None:
        """Store the numerics class of the first plan; see `BatchHead`."""
        self._change(batch, epoch, numerics=numerics)

    def move_head(self, batch: str, epoch: int, head: Cid) -> None:
        """Move the journal's head; see `BatchHead`."""
        self._change(batch, epoch, head_cid=str(head))

    def finish(self, batch: str, epoch: int, result: Cid, provenance: Cid) -> None:
        """Store the result; see `BatchHead`."""
        self._change(batch, epoch, state="done", result_cid=str(result), provenance_cid=str(provenance), error=None)

    def heartbeat(self, batch: str, epoch: int) -> None:
        """Say that the run lives.

        Raises:
            StaleEpoch: a newer run has taken the batch.
        """
        self._change(batch, epoch)

    def heard_ms(self, batch: str) -> int | None:
        """Give the last sign of life of a batch of any owner, in Unix milliseconds; None: there is no such batch."""
        row = self._find(batch)
        return None if row is None else int(row["updated_ms"])

    def fail(self, batch: str, error: str, *, holder: str) -> bool:
        """Store why a run failed, unless another one holds the batch.

        Args:
            batch: the batch's id.
            error: one line.
            holder: the run that failed, by the name with which it took its epoch, or would have.

        Returns:
            False where another run holds the batch: nothing was changed.
        """
        return self._end(batch, holder, state="failed", error=error)

    def cancel(self, batch: str, *, holder: str) -> bool:
        """Store that the user stopped a run; arguments and answer as of `fail`."""
        return self._end(batch, holder, state="cancelled", error=None)

    def keep_dataset(self, batch: str, dataset: Cid, errors: Cid | None) -> None:
        """Store what ingest made of the input. No epoch: the same input gives the same CID in every run."""
        self._change(batch, None, dataset_cid=str(dataset), errors_cid=None if errors is None else str(errors))

    def keep_run(self, batch: str, run_id: str) -> None:
        """Store which Dagster run works on the batch."""
        self._change(batch, None, run_id=run_id)

    def keep_output(self, batch: str, output: str) -> None:
        """Store where the joined table lies."""
        self._change(batch, None, output=output)

    def _change(self, batch: str, epoch: int | None, **values: Any) -> None:
        statement = update(batches).where(batches.c.id == batch).values(updated_ms=_now_ms(), **values)
        if epoch is not None:
            statement = statement.where(batches.c.epoch == epoch)
        with self._database.write() as connection:
            if connection.execute(statement).rowcount == 1:
                return
        if epoch is None or self._find(batch) is None:
            raise InputError(f"there is no batch {batch!r}")
        raise StaleEpoch(f"batch {batch}: a newer run than epoch {epoch} has taken over")

    def _end(self, batch: str, holder: str, **values: Any) -> bool:
        held = or_(batches.c.holder.is_(None), batches.c.holder == holder[:200])
        statement = update(batches).where(batches.c.id == batch, held).values(updated_ms=_now_ms(), **values)
        with self._database.write() as connection:
            return connection.execute(statement).rowcount == 1

    def _find(self, batch: str) -> RowMapping | None:
        with self._database.read() as connection:
            return connection.execute(select(batches).where(batches.c.id == batch)).mappings().one_or_none()


def submit_batch(
    database: Database,
    spec: BatchSpec | Mapping[str, Any],
    *,
    owner: str = "local",
    batch_id: str | None = None,
    run: bool = True,
    output: str | None = None,
) -> BatchRow:
    """Submit a batch: the one door, which a later version opens over gRPC.

    Args: as `Batches.submit`; `spec` may be plain data from YAML or JSON.

    Raises:
        InputError: the spec or the id is wrong.
    """
    read = spec if isinstance(spec, BatchSpec) else BatchSpec.read(spec)
    return Batches(database).submit(read, owner=owner, batch_id=batch_id, run=run, output=output)


def _spec_text(spec: BatchSpec) -> str:
    return json.dumps(spec.to_plain(), sort_keys=True, ensure_ascii=False)


def _read(row: RowMapping) -> BatchRow:
    return BatchRow(
        id=row["id"],
        owner=row["owner"],
        spec=BatchSpec.read(json.loads(row["spec"])),
        state=row["state"],
        request=row["request"],
        epoch=row["epoch"],
        holder=row["holder"],
        numerics=row["numerics"],
        head=_cid(row["head_cid"]),
        dataset=_cid(row["dataset_cid"]),
        errors=_cid(row["errors_cid"]),
        result=_cid(row["result_cid"]),
        provenance=_cid(row["provenance_cid"]),
        error=row["error"],
        run_id=row["run_id"],
        output=row["output"],
        created_ms=row["created_ms"],
        updated_ms=row["updated_ms"],
    )


def _cid(text: str | None) -> Cid | None:
    return None if text is None else Cid.parse(text)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
