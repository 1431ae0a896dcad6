"""DIM's tables, as SQLAlchemy core; `migrations/` makes them, this file only names them.

CIDs are their base32 text, times are Unix milliseconds, so that a person at a SQL prompt can read a row.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import BigInteger, Column, Index, Integer, MetaData, String, Table, Text

VERSION_TABLE: Final = "dim_alembic_version"
"""Alembic's table; its own name, because Dagster keeps one in the same Postgres database."""
HEAD: Final = "0001"
"""The newest migration."""
SCHEMA: Final = "dim"
"""The schema on Postgres; SQLite has none."""

metadata = MetaData()

batches = Table(
    "batches",
    metadata,
    Column("id", String(100), primary_key=True),
    Column("owner", String(200), nullable=False),
    Column("spec", Text, nullable=False),
    Column("state", String(20), nullable=False),
    Column("request", Integer, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("holder", String(200)),
    Column("numerics", Text),
    Column("head_cid", String(64)),
    Column("dataset_cid", String(64)),
    Column("errors_cid", String(64)),
    Column("result_cid", String(64)),
    Column("provenance_cid", String(64)),
    Column("error", Text),
    Column("run_id", String(100)),
    Column("output", Text),
    Column("created_ms", BigInteger, nullable=False),
    Column("updated_ms", BigInteger, nullable=False),
    Index("batches_by_state", "state", "created_ms"),
    Index("batches_by_owner", "owner", "created_ms"),
)
