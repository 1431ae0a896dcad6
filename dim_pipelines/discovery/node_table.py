"""The table of nodes: what was heard of each, what was concluded, and its high-water mark. SQL; calls block.

Several processes write it: the orchestrator (records, health), run workers (lost sessions, refusals). Each change of
a status is one transaction that reads the row, asks the pure rules, and writes. Only members ever get a row, so that
strangers cannot make it grow; rows are never deleted, so that marks last.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any, Final

from sqlalchemy import Connection, RowMapping, delete, func, insert, select, text, update

from dim_pipelines.database.engine import Database
from dim_pipelines.database.tables import nodes, refusals
from dim_pipelines.discovery.judgement import Mark
from dim_pipelines.discovery.node_states import (
    STATES,
    Event,
    LostByRun,
    NodeStatus,
    RecordAccepted,
    State,
    step,
)
from dim_pipelines.discovery.record import NodeRecord, read_node_record
from dim_pipelines.domain.ipns import public_of
from dim_pipelines.domain.node import NodeDescription, describe_advertised
from dim_pipelines.domain.roster import Member
from dim_pipelines.errors import RolledBack

KEPT_REFUSALS: Final = 50
"""How many of a node's refusals are kept."""
_LABEL: Final = 100
_REASON: Final = 500
_SUFFIX: Final = 5
_POSTGRES_LOCK: Final = 0x6E6F6465  # "node": changes are numbered in the order in which they are committed

_STATUS: Final = (
    "state", "reason", "since_ms", "expires_ms", "healthy_ms", "penalty", "penalty_ms", "suppressed"
)  # fmt: skip


@dataclass(frozen=True)
class NodeRow:
    """A node as the table knows it.

    Attributes:
        name: its IPNS name.
        label: its name for people, unique in the table: what its record says, or that and the end of its name.
        owner: the member it belongs to, as the roster said.
        status: what is concluded about it.
        raw: the bytes of the last accepted record; None where there is none.
        sequence: the high-water mark; -1 where there is none.
        reach: `direct`, `attached`, or empty before a record.
        relay: IPNS name of the orchestrator that it hangs on.
        change: grows with every change that others should hear of; a mere renewal of a record is none.
    """

    name: str
    label: str
    owner: str
    status: NodeStatus
    raw: bytes | None = field(repr=False)
    sequence: int
    reach: str
    relay: str | None
    change: int

    @property
    def state(self) -> State:
        """How far it has come."""
        return self.status.state

    @property
    def reason(self) -> str:
        """Why it is there."""
        return self.status.reason

    @property
    def since_ms(self) -> int:
        """When it came into its state."""
        return self.status.since_ms

    @property
    def expires_ms(self) -> int:
        """When its record ends; whether that matters is the state's word (see `node_states`)."""
        return self.status.expires_ms

    @property
    def record(self) -> NodeRecord | None:
        """The last accepted record."""
        return None if self.raw is None else _read_record(self.raw, self.name)

    @property
    def mark(self) -> Mark | None:
        """The high-water mark: no record at or below it is accepted again."""
        record = self.record
        return None if record is None else Mark(self.sequence, record.digest)

    @cached_property
    def description(self) -> NodeDescription:
        """What the scheduler sees; one that offers nothing where no record was accepted."""
        record = self.record
        if record is None:
            return NodeDescription(self.label, public_of(self.name), "", (), {}, "", 0, id=self.name, owner=self.owner)
        said = describe_advertised(self.name, record.key, self.owner, record.advertisement)
        return replace(said, name=self.label)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a batch was, or was not, given to a node."""

    batch: str
    reasons: tuple[str, ...]
    chosen: bool
    at_ms: int


class NodeTable:
    """The nodes of a database."""

    def __init__(self, database: Database) -> None:
        """Use the table in a database."""
        self._database = database

    def offer(self, record: NodeRecord, member: Member, now_ms: int) -> NodeRow:
        """Take in a record that was judged NEW; the high-water mark is looked at once more, in the transaction.

        Raises:
            RolledBack: another process has taken in a newer one meanwhile, or other bytes of the same sequence.
        """
        with self._writing() as connection:
            row = _find(connection, record.name)
            if row is None:
                connection.execute(insert(nodes).values(_blank(record.name, member, now_ms)))
                row = _find(connection, record.name)
                assert row is not None
            before = _read(row)
            if before.record is not None and before.record.digest == record.digest:
                return before
            if record.sequence <= before.sequence:
                raise RolledBack(f"sequence {record.sequence} is not above {before.sequence}, which was accepted")
            fields = record.fields
            moved = before.record is not None and _whereabouts(before.record) != _whereabouts(record)
            status = step(
                before.status, RecordAccepted(record.expires_ms, moved, record.advertisement.draining), now_ms
            )
            wanted = _clean(record.advertisement.label or member.label, _LABEL)
            values: dict[str, Any] = {
                "record": record.raw,
                "sequence": record.sequence,
                "reach": fields.reach,
                "owner": member.owner,
                "label": _unique_label(connection, before, wanted),
            }
            if fields.reach == "direct":
                values["relay"] = None
            elif before.relay is None or before.relay not in fields.attached_to:
                values["relay"] = fields.attached_to[0] if fields.attached_to else None
            renewed = before.record is not None and _said(before.record) == _said(record)
            same = all(row[key] == value for key, value in values.items() if key not in ("record", "sequence"))
            return self._keep(connection, before, status, now_ms, values, quiet=renewed and same)

    def mark(self, name: str) -> Mark | None:
        """Give the high-water mark of a name; None where no record of it was ever accepted."""
        row = self.row(name)
        return None if row is None else row.mark

    def see(self, name: str, member: Member, now_ms: int) -> NodeRow:
        """Give the row of an admitted node, made (SEEN) where there is none."""
        if (found := self.row(name)) is not None:
            return found
        with self._writing() as connection:
            if _find(connection, name) is None:
                values = _blank(name, member, now_ms)
                connection.execute(insert(nodes).values({**values, "change": _next_change(connection)}))
            row = _find(connection, name)
            assert row is not None
            return _read(row)

    def apply(self, name: str, event: Event, now_ms: int) -> NodeRow | None:
        """Take in an event and give the row; None for a node that has none. Writes only where something changes."""
        before = self.row(name)  # without the write lock: most events change nothing
        if before is None or step(before.status, event, now_ms) is before.status:
            return before
        with self._writing() as connection:
            row = _find(connection, name)
            assert row is not None
            before = _read(row)
            return self._keep(connection, before, step(before.status, event, now_ms), now_ms, {})

    def lost(self, name: str, reason: str) -> NodeRow | None:
        """Take in that a run worker has lost its session with a node."""
        return self.apply(name, LostByRun(_clean(reason, _REASON)), _now_ms())

    def set_relay(self, name: str, orchestrator: str | None) -> NodeRow | None:
        """Say on which orchestrator an attached node hangs."""
        with self._writing() as connection:
            row = _find(connection, name)
            if row is None:
                return None
            before = _read(row)
            if before.relay == orchestrator:
                return before
            return self._keep(connection, before, before.status, _now_ms(), {"relay": orchestrator})

    def rows(self, states: Collection[State] | None = None) -> list[NodeRow]:
        """List the nodes, all or those in some states, by label."""
        query = select(nodes).order_by(nodes.c.label)
        if states is not None:
            query = query.where(nodes.c.state.in_(list(states)))
        return self._list(query)

    def changed_since(self, change: int, limit: int | None = None) -> list[NodeRow]:
        """List the nodes that changed after the change of that number, in the order of their changes."""
        return self._list(select(nodes).where(nodes.c.change > change).order_by(nodes.c.change).limit(limit))

    def ended(self, now_ms: int) -> list[str]:
        """Give the names of the nodes whose record has ended and that are not GONE yet."""
        live = nodes.c.state.in_(["VERIFIED", "ELIGIBLE", "SUSPECT"])
        with self._database.read() as connection:
            return list(connection.execute(select(nodes.c.name).where(live, nodes.c.expires_ms <= now_ms)).scalars())

    def row(self, name: str) -> NodeRow | None:
        """Give a node's row."""
        with self._database.read() as connection:
            row = _find(connection, name)
        return None if row is None else _read(row)

    def last_change(self) -> int:
        """Give the number of the newest change; 0 for an empty table."""
        with self._database.read() as connection:
            return int(connection.execute(select(func.max(nodes.c.change))).scalar() or 0)

    def count_states(self) -> dict[str, int]:
        """Count the nodes in each state."""
        query = select(nodes.c.state, func.count()).group_by(nodes.c.state)
        with self._database.read() as connection:
            found = {row[0]: row[1] for row in connection.execute(query)}
        return {state: found.get(state, 0) for state in STATES}

    def keep_refusals(self, batch: str, reasons: Mapping[str, Sequence[str]], chosen: Collection[str]) -> None:
        """Keep why nodes were, or were not, given a batch.

        Args:
            batch: the batch.
            reasons: IPNS name → every reason against the node; none for one that could take it.
            chosen: the names of those that were given it.
        """
        now = _now_ms()
        rows = [
            {
                "node": name,
                "batch": batch,
                "reasons": json.dumps(list(why), ensure_ascii=False),
                "chosen": name in chosen,
                "at_ms": now,
            }
            for name, why in reasons.items()
        ]
        if not rows:
            return
        with self._database.write() as connection:
            connection.execute(insert(refusals), rows)
            for name in reasons:
                oldest = (
                    select(refusals.c.id)
                    .where(refusals.c.node == name)
                    .order_by(refusals.c.id.desc())
                    .offset(KEPT_REFUSALS - 1)
                    .limit(1)
                    .scalar_subquery()
                )
                connection.execute(delete(refusals).where(refusals.c.node == name, refusals.c.id < oldest))

    def refusals(self, node: str, limit: int = 10) -> list[Refusal]:
        """List what was kept of a node (IPNS name), the newest first."""
        query = select(refusals).where(refusals.c.node == node).order_by(refusals.c.id.desc()).limit(limit)
        with self._database.read() as connection:
            found = connection.execute(query).mappings().all()
        return [Refusal(row["batch"], tuple(json.loads(row["reasons"])), row["chosen"], row["at_ms"]) for row in found]

    def _list(self, query: Any) -> list[NodeRow]:
        with self._database.read() as connection:
            return [_read(row) for row in connection.execute(query).mappings()]

    def _keep(
        self,
        connection: Connection,
        before: NodeRow,
        status: NodeStatus,
        now_ms: int,
        values: Mapping[str, Any],
        *,
        quiet: bool = False,
    ) -> NodeRow:
        """Write a status and further columns; `quiet`: unless the state changes, nobody needs to hear of it."""
        heard = (status.state, status.reason) != (before.state, before.reason) or not quiet
        new = {each: getattr(status, each) for each in _STATUS} | {"reason": _clean(status.reason, _REASON)}
        change = _next_change(connection) if heard else before.change
        connection.execute(
            update(nodes)
            .where(nodes.c.name == before.name)
            .values({**new, **values, "change": change, "updated_ms": now_ms})
        )
        row = _find(connection, before.name)
        assert row is not None
        return _read(row)

    def _writing(self) -> Any:
        return _Writing(self._database)


class _Writing:
    """A write transaction in which changes are numbered: on Postgres one at a time, as they are on SQLite anyway."""

    def __init__(self, database: Database) -> None:
        self._transaction = database.write()

    def __enter__(self) -> Connection:
        connection = self._transaction.__enter__()
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _POSTGRES_LOCK})
        return connection

    def __exit__(self, *error: Any) -> bool | None:
        return self._transaction.__exit__(*error)


def _find(connection: Connection, name: str) -> RowMapping | None:
    return connection.execute(select(nodes).where(nodes.c.name == name)).mappings().one_or_none()


def _next_change(connection: Connection) -> int:
    return int(connection.execute(select(func.max(nodes.c.change))).scalar() or 0) + 1


def _blank(name: str, member: Member, now_ms: int) -> dict[str, Any]:
    status = NodeStatus(since_ms=now_ms, reason="no record of it was accepted yet")
    return {each: getattr(status, each) for each in _STATUS} | {
        "name": name,
        "label": f"{_clean(member.label, _LABEL) or 'node'}-{name[-_SUFFIX:]}",
        "owner": member.owner,
        "record": None,
        "sequence": -1,
        "reach": "",
        "relay": None,
        "change": 0,
        "updated_ms": now_ms,
    }


def _read(row: RowMapping) -> NodeRow:
    return NodeRow(
        name=row["name"],
        label=row["label"],
        owner=row["owner"],
        status=NodeStatus(**{each: row[each] for each in _STATUS}),
        raw=row["record"],
        sequence=row["sequence"],
        reach=row["reach"],
        relay=row["relay"],
        change=row["change"],
    )


@lru_cache(maxsize=4096)
def _read_record(raw: bytes, name: str) -> NodeRecord:
    return read_node_record(raw, name)


def _whereabouts(record: NodeRecord) -> tuple[object, ...]:
    said = record.fields
    return (said.boot, said.reach, said.endpoints, said.certificate)


def _said(record: NodeRecord) -> object:
    """Give everything that a record says but when it was made."""
    return record.fields.model_copy(update={"issued_ms": 0})


def _unique_label(connection: Connection, row: NodeRow, wanted: str) -> str:
    """Give the wanted label, or with the end of the name where another node has it; a row keeps what it has."""
    wanted = wanted or "node"
    longer = f"{wanted}-{row.name[-_SUFFIX:]}"
    if row.raw is not None and row.label in (wanted, longer):
        return row.label
    taken = connection.execute(select(nodes.c.name).where(nodes.c.label == wanted, nodes.c.name != row.name)).first()
    return longer if taken else wanted


def _clean(words: str, limit: int) -> str:
    """Give one line of printable characters: a label or reason may come from a stranger."""
    return "".join(each if each.isprintable() else " " for each in words).strip()[:limit]


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
