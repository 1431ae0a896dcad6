"""DIM's tables, as SQLAlchemy core; `migrations/` makes them, this file only names them.

CIDs are their base32 text, times are Unix milliseconds, so that a person at a SQL prompt can read a row.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import BigInteger, Boolean, Column, Float, Index, Integer, LargeBinary, MetaData, String, Table, Text

VERSION_TABLE: Final = "dim_alembic_version"
"""Alembic's table; its own name, because Dagster keeps one in the same Postgres database."""
HEAD: Final = "0002"
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

nodes = Table(
    "nodes",
    metadata,
    Column("name", String(80), primary_key=True),  # IPNS name
    Column("label", String(200), nullable=False),
    Column("owner", String(200), nullable=False),
    Column("state", String(20), nullable=False),
    Column("reason", Text, nullable=False),
    Column("since_ms", BigInteger, nullable=False),
    Column("record", LargeBinary),  # the last one that was accepted; its sequence is the high-water mark
    Column("sequence", BigInteger, nullable=False),
    Column("expires_ms", BigInteger, nullable=False),
    Column("reach", String(20), nullable=False),
    Column("relay", String(80)),  # IPNS name of the orchestrator that an attached node hangs on
    Column("healthy_ms", BigInteger),
    Column("penalty", Float, nullable=False),  # of flapping, at penalty_ms
    Column("penalty_ms", BigInteger, nullable=False),
    Column("suppressed", Boolean, nullable=False),  # it has flapped so much that it is kept SUSPECT
    Column("change", BigInteger, nullable=False),  # grows with every change that others should hear of
    Column("updated_ms", BigInteger, nullable=False),
    Index("nodes_by_state", "state"),
    Index("nodes_by_change", "change"),
)
"""Nodes that were heard of and what is known of them; never deleted, so that high-water marks last."""

rosters = Table(
    "rosters",
    metadata,
    Column("network", String(80), primary_key=True),
    Column("version", BigInteger, primary_key=True, autoincrement=False),
    Column("signed", LargeBinary, nullable=False),
    Column("accepted_ms", BigInteger, nullable=False),
)
"""Signed rosters that were accepted."""

roster_pages = Table(
    "roster_pages",
    metadata,
    Column("cid", String(64), primary_key=True),
    Column("data", LargeBinary, nullable=False),
)
"""Pages of signed rosters."""

invites = Table(
    "invites",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("network", String(80), nullable=False),
    Column("secret_hash", LargeBinary, nullable=False),
    Column("roles", Text, nullable=False),  # JSON list
    Column("owner", String(200), nullable=False),
    Column("limits", Text, nullable=False),  # JSON
    Column("expires_ms", BigInteger, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("used_ms", BigInteger),
    Column("used_by", String(80)),
)
"""Invites; each is taken once, by a compare-and-set on `used_ms`."""

reputations = Table(
    "reputations",
    metadata,
    Column("node", String(80), primary_key=True),  # IPNS name
    Column("numerics", String(400), primary_key=True),
    Column("good", Float, nullable=False),  # decayed counts at updated_ms
    Column("bad", Float, nullable=False),
    Column("late", Float, nullable=False),
    Column("rows_per_s", Float),
    Column("last", Text, nullable=False),  # the newest thing that changed it, for people
    Column("updated_ms", BigInteger, nullable=False),
)
"""What was seen of a node's work in a numerics class."""

refusals = Table(
    "refusals",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("node", String(80), nullable=False),
    Column("batch", String(100), nullable=False),
    Column("reasons", Text, nullable=False),  # JSON list
    Column("chosen", Boolean, nullable=False),
    Column("at_ms", BigInteger, nullable=False),
    Index("refusals_by_node", "node", "id"),
)
"""Why a batch was, or was not, given to a node: what `dim nodes explain` and `dim doctor` show."""
