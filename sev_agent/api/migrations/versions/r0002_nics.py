"""What is known of a server's NICs. Of servers that are there already, nothing."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("servers", sa.Column("nics", sa.JSON, nullable=False, server_default="[]"))


def downgrade() -> None:
    op.drop_column("servers", "nics")
