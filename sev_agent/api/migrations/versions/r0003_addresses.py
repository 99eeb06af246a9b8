"""The addresses that servers have from the operator's pools."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table("address_pools", sa.Column("network_id", sa.String(36), primary_key=True))
    op.create_table(
        "addresses",
        sa.Column("network_id", sa.String(36), primary_key=True),
        sa.Column("address", sa.String(45), primary_key=True),
        sa.Column("server_id", sa.String(36), sa.ForeignKey("servers.id", ondelete="CASCADE"), nullable=False),
    )
    op.create_index("addresses_of_server", "addresses", ["server_id"])


def downgrade() -> None:
    op.drop_table("addresses")
    op.drop_table("address_pools")
