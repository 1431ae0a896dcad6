"""The reputations of nodes by numerics class, in SQL; the rules are `scheduling.reputation`'s, calls block.

Several run workers write it: each report is one transaction that reads, asks the rules, and writes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from sqlalchemy import ColumnElement, RowMapping, and_, insert, or_, select, update

from dim_pipelines.database.engine import Database
from dim_pipelines.database.tables import reputations
from dim_pipelines.scheduling.reputation import Reputation, Seen, add

_WORDS: Final = 500
_AT_ONCE: Final = 400
"""Nodes asked about in one statement: SQLite takes 999 variables in the oldest builds that are about."""


class ReputationTable:
    """The reputations in a database."""

    def __init__(self, database: Database) -> None:
        """Use the table in a database."""
        self._database = database

    def get(self, classes: Mapping[str, str]) -> dict[str, Reputation]:
        """Give what is known: node (IPNS name) → numerics class, to node → reputation; strangers are left out.

        Raises:
            ConfigurationError: the database does not answer.
        """
        wanted = list(classes.items())
        found: dict[str, Reputation] = {}
        with self._database.read() as connection:
            for start in range(0, len(wanted), _AT_ONCE):
                part = wanted[start : start + _AT_ONCE]
                either = or_(*(_is(node, numerics) for node, numerics in part))
                for row in connection.execute(select(reputations).where(either)).mappings():
                    found[row["node"]] = _read(row)
        return found

    def of_node(self, node: str) -> dict[str, Reputation]:
        """Give what is known of a node (IPNS name), by numerics class.

        Raises:
            ConfigurationError: the database does not answer.
        """
        query = select(reputations).where(reputations.c.node == node).order_by(reputations.c.numerics)
        with self._database.read() as connection:
            return {row["numerics"]: _read(row) for row in connection.execute(query).mappings()}

    def add(self, classes: Mapping[str, str], seen: Mapping[str, Seen], now_ms: int) -> None:
        """Take in what a run worker saw.

        Args:
            classes: node (IPNS name) → the numerics class in which it computed.
            seen: node → what was seen of it.
            now_ms: Unix time in milliseconds.

        Raises:
            ConfigurationError: the database does not answer.
        """
        with self._database.write() as connection:
            for node in sorted(seen):  # in one order everywhere: two workers never wait for each other in a circle
                here = _is(node, classes[node])
                row = connection.execute(select(reputations).where(here).with_for_update()).mappings().one_or_none()
                after = add(Reputation() if row is None else _read(row), seen[node], now_ms)
                values = {
                    "good": after.good,
                    "bad": after.bad,
                    "late": after.late,
                    "rows_per_s": after.rows_per_s,
                    "last": after.last[:_WORDS],
                    "updated_ms": after.at_ms,
                }
                if row is None:
                    connection.execute(insert(reputations).values(node=node, numerics=classes[node], **values))
                else:
                    connection.execute(update(reputations).where(here).values(values))


def _is(node: str, numerics: str) -> ColumnElement[bool]:
    return and_(reputations.c.node == node, reputations.c.numerics == numerics)


def _read(row: RowMapping) -> Reputation:
    return Reputation(
        row["good"], row["bad"], row["late"], row["rows_per_s"], last=row["last"], at_ms=row["updated_ms"]
    )
