"""Nodes, the roster, invites, reputations, and why batches were not given to nodes."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "nodes",
        sa.Column("name", sa.String(80), primary_key=True),
        sa.Column("label", sa.String(200), nullable=False),
        sa.Column("owner", sa.String(200), nullable=False),
        sa.Column("state", sa.String(20), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("since_ms", sa.BigInteger, nullable=False),
        sa.Column("record", sa.LargeBinary),
        sa.Column("sequence", sa.BigInteger, nullable=False),
        sa.Column("expires_ms", sa.BigInteger, nullable=False),
        sa.Column("reach", sa.String(20), nullable=False),
        sa.Column("relay", sa.String(80)),
        sa.Column("healthy_ms", sa.BigInteger),
        sa.Column("penalty", sa.Float, nullable=False),
        sa.Column("penalty_ms", sa.BigInteger, nullable=False),
        sa.Column("suppressed", sa.Boolean, nullable=False),
        sa.Column("change", sa.BigInteger, nullable=False),
        sa.Column("updated_ms", sa.BigInteger, nullable=False),
    )
    op.create_index("nodes_by_state", "nodes", ["state"])
    op.create_index("nodes_by_change", "nodes", ["change"])
    op.create_table(
        "rosters",
        sa.Column("network", sa.String(80), primary_key=True),
        sa.Column("version", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("signed", sa.LargeBinary, nullable=False),
        sa.Column("accepted_ms", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "roster_pages",
        sa.Column("cid", sa.String(64), primary_key=True),
        sa.Column("data", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "invites",
        sa.Column("id", sa.String(40), primary_key=True),
        sa.Column("network", sa.String(80), nullable=False),
        sa.Column("secret_hash", sa.LargeBinary, nullable=False),
        sa.Column("roles", sa.Text, nullable=False),
        sa.Column("owner", sa.String(200), nullable=False),
        sa.Column("limits", sa.Text, nullable=False),
        sa.Column("expires_ms", sa.BigInteger, nullable=False),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.Column("used_ms", sa.BigInteger),
        sa.Column("used_by", sa.String(80)),
    )
    op.create_table(
        "reputations",
        sa.Column("node", sa.String(80), primary_key=True),
        sa.Column("numerics", sa.String(400), primary_key=True),
        sa.Column("good", sa.Float, nullable=False),
        sa.Column("bad", sa.Float, nullable=False),
        sa.Column("late", sa.Float, nullable=False),
        sa.Column("rows_per_s", sa.Float),
        sa.Column("last", sa.Text, nullable=False),
        sa.Column("updated_ms", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "refusals",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("node", sa.String(80), nullable=False),
        sa.Column("batch", sa.String(100), nullable=False),
        sa.Column("reasons", sa.Text, nullable=False),
        sa.Column("chosen", sa.Boolean, nullable=False),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
    )
    op.create_index("refusals_by_node", "refusals", ["node", "id"])


def downgrade() -> None:
    """Drop the tables."""
    op.drop_table("refusals")
    op.drop_table("reputations")
    op.drop_table("invites")
    op.drop_table("roster_pages")
    op.drop_table("rosters")
    op.drop_table("nodes")
