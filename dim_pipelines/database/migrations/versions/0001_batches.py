"""The table of batches."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table and its indexes."""
    op.create_table(
        "batches",
        sa.Column("id", sa.String(100), primary_key=True),
        sa.Column("owner", sa.String(200), nullable=False),
        sa.Column("spec", sa.Text, nullable=False),
        sa.Column("state", sa.String(20), nullable=False),
        sa.Column("request", sa.Integer, nullable=False),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("holder", sa.String(200)),
        sa.Column("numerics", sa.Text),
        sa.Column("head_cid", sa.String(64)),
        sa.Column("dataset_cid", sa.String(64)),
        sa.Column("errors_cid", sa.String(64)),
        sa.Column("result_cid", sa.String(64)),
        sa.Column("provenance_cid", sa.String(64)),
        sa.Column("error", sa.Text),
        sa.Column("run_id", sa.String(100)),
        sa.Column("output", sa.Text),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.Column("updated_ms", sa.BigInteger, nullable=False),
    )
    op.create_index("batches_by_state", "batches", ["state", "created_ms"])
    op.create_index("batches_by_owner", "batches", ["owner", "created_ms"])


def downgrade() -> None:
    """Drop the table."""
    op.drop_table("batches")
