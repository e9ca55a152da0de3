"""batches that go on"""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

_GOING_ON = sa.text("ended_at IS NULL")


def upgrade() -> None:
    op.create_index(
        "ix_batches_going_on", "batches", ["id"], unique=False, sqlite_where=_GOING_ON, postgresql_where=_GOING_ON
    )


def downgrade() -> None:
    op.drop_index("ix_batches_going_on", "batches", sqlite_where=_GOING_ON, postgresql_where=_GOING_ON)
