"""The first tables."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "flavors",
        sa.Column("flavor_id", sa.String(255), primary_key=True),
        sa.Column("name", sa.String(255), nullable=False, unique=True),
        sa.Column("vcpus", sa.Integer, nullable=False),
        sa.Column("memory_mb", sa.Integer, nullable=False),
        sa.Column("root_gb", sa.Integer, nullable=False),
        sa.Column("is_public", sa.Boolean, nullable=False),
        sa.Column("description", sa.Text),
        sa.Column("created_at", sa.DateTime, nullable=False),
    )
    op.create_table(
        "flavor_extra_specs",
        _flavor_id(),
        sa.Column("key", sa.String(255), primary_key=True),
        sa.Column("value", sa.String(255), nullable=False),
    )
    op.create_table("flavor_access", _flavor_id(), sa.Column("project_id", sa.String(255), primary_key=True))
    op.create_table(
        "keypairs",
        sa.Column("user_id", sa.String(255), primary_key=True),
        sa.Column("name", sa.String(255), primary_key=True),
        sa.Column("type", sa.String(16), nullable=False),
        sa.Column("fingerprint", sa.String(255), nullable=False),
        sa.Column("public_key", sa.Text, nullable=False),
        sa.Column("created_at", sa.DateTime, nullable=False),
    )
    op.create_table("projects", sa.Column("project_id", sa.String(255), primary_key=True))
    _create_servers()


def _create_servers() -> None:
    op.create_table(
        "servers",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("project_id", sa.String(255), nullable=False),
        sa.Column("user_id", sa.String(255), nullable=False),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("description", sa.String(255)),
        sa.Column("created_at", sa.DateTime, nullable=False),
        sa.Column("updated_at", sa.DateTime, nullable=False),
        sa.Column("launched_at", sa.DateTime),
        sa.Column("deleted_at", sa.DateTime),
        sa.Column("vm_state", sa.String(32), nullable=False),
        sa.Column("task_state", sa.String(32)),
        sa.Column("host", sa.String(255)),
        sa.Column("forced_host", sa.String(255)),
        sa.Column("flavor_id", sa.String(255), nullable=False),
        sa.Column("flavor", sa.JSON, nullable=False),
        sa.Column("vcpus", sa.Integer, nullable=False),
        sa.Column("memory_mb", sa.BigInteger, nullable=False),
        sa.Column("image_id", sa.String(36), nullable=False),
        sa.Column("key_name", sa.String(255)),
        sa.Column("reservation_id", sa.String(32), nullable=False),
        sa.Column("launch_index", sa.Integer, nullable=False),
        sa.Column("metadata", sa.JSON, nullable=False),
        sa.Column("tags", sa.JSON, nullable=False),
        sa.Column("request", sa.JSON, nullable=False),
        sa.Column("fault", sa.JSON),
        sa.Column("request_id", sa.String(64), nullable=False),
        sa.Column("told_by", sa.String(255)),
        sa.Column("told_at", sa.DateTime),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("casts", sa.Integer, nullable=False),
        sa.Column("look_at", sa.DateTime),
        sa.Column("looks", sa.Integer, nullable=False),
        sa.Column("terminate_host", sa.String(255)),
    )
    op.create_index("servers_of_project", "servers", ["project_id", "deleted_at", "created_at"])
    op.create_index("servers_in_order", "servers", ["deleted_at", "created_at"])
    op.create_index("servers_to_look_at", "servers", ["look_at"])


def _flavor_id() -> "sa.Column[str]":
    return sa.Column(
        "flavor_id", sa.String(255), sa.ForeignKey("flavors.flavor_id", ondelete="CASCADE"), primary_key=True
    )


def downgrade() -> None:
    for name in ("servers", "projects", "keypairs", "flavor_access", "flavor_extra_specs", "flavors"):
        op.drop_table(name)
