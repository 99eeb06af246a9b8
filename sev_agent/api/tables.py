"""What the API remembers: the tables, as SQLAlchemy's mapped classes. Changes need a migration beside this."""

from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import JSON, BigInteger, Boolean, DateTime, ForeignKey, Index, Integer, String, Text, TypeDecorator
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

REVISION: Final = "0003"
"""The newest migration, which a database must be at."""


class UtcDateTime(TypeDecorator[datetime]):
    """A moment, stored in UTC without a zone: SQLite knows none."""

    impl = DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        del dialect
        return None if value is None else value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        del dialect
        return None if value is None else value.replace(tzinfo=UTC)


class Table(DeclarativeBase):
    """The root of all tables."""


class FlavorRow(Table):
    """A flavor: ``memory_mb`` MiB, ``root_gb`` GiB."""

    __tablename__ = "flavors"

    flavor_id: Mapped[str] = mapped_column(String(255), primary_key=True)
    name: Mapped[str] = mapped_column(String(255), unique=True)
    vcpus: Mapped[int] = mapped_column(Integer)
    memory_mb: Mapped[int] = mapped_column(Integer)
    root_gb: Mapped[int] = mapped_column(Integer)
    is_public: Mapped[bool] = mapped_column(Boolean)
    description: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)


class ExtraSpecRow(Table):
    """One extra spec of a flavor."""

    __tablename__ = "flavor_extra_specs"

    flavor_id: Mapped[str] = mapped_column(
        String(255), ForeignKey("flavors.flavor_id", ondelete="CASCADE"), primary_key=True
    )
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    value: Mapped[str] = mapped_column(String(255))


class FlavorAccessRow(Table):
    """A project that may use a flavor that is not public."""

    __tablename__ = "flavor_access"

    flavor_id: Mapped[str] = mapped_column(
        String(255), ForeignKey("flavors.flavor_id", ondelete="CASCADE"), primary_key=True
    )
    project_id: Mapped[str] = mapped_column(String(255), primary_key=True)


class KeypairRow(Table):
    """A user's public key for SSH."""

    __tablename__ = "keypairs"

    user_id: Mapped[str] = mapped_column(String(255), primary_key=True)
    name: Mapped[str] = mapped_column(String(255), primary_key=True)
    type: Mapped[str] = mapped_column(String(16), default="ssh")
    fingerprint: Mapped[str] = mapped_column(String(255))
    public_key: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)


class ProjectRow(Table):
    """A project that has had a server, or a user with a key pair. Its row is locked while its quota is counted."""

    __tablename__ = "projects"

    project_id: Mapped[str] = mapped_column(String(255), primary_key=True)


class ServerRow(Table):
    """A server: what was asked for, and what is known of it. ``state.py`` says what the states mean.

    ``flavor`` is the flavor as it was at the creation, ``request`` the RPC's ``Instance``, ``nics`` what
    ``addresses.known_nics`` says of it. ``told_by`` and ``told_at``
    are the host that last told of it and the time of its record; ``attempt`` is how many hosts the newest word of the
    scheduler had tried. ``casts`` is how often it was handed to the schedulers; 0 where only who made it knows.
    ``look_at`` is when the upkeep looks after it, ``looks`` how often it has in vain.
    ``terminate_host`` is the host that was asked to delete it. One that is deleted and still has a task is gone for
    its owner only: its host has not said so.
    """

    __tablename__ = "servers"

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    project_id: Mapped[str] = mapped_column(String(255))
    user_id: Mapped[str] = mapped_column(String(255))
    name: Mapped[str] = mapped_column(String(255))
    description: Mapped[str | None] = mapped_column(String(255))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    updated_at: Mapped[datetime] = mapped_column(UtcDateTime)
    launched_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    deleted_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    vm_state: Mapped[str] = mapped_column(String(32))
    task_state: Mapped[str | None] = mapped_column(String(32))
    host: Mapped[str | None] = mapped_column(String(255))
    forced_host: Mapped[str | None] = mapped_column(String(255))
    flavor_id: Mapped[str] = mapped_column(String(255))
    flavor: Mapped[dict[str, Any]] = mapped_column(JSON)
    vcpus: Mapped[int] = mapped_column(Integer)
    memory_mb: Mapped[int] = mapped_column(BigInteger)
    image_id: Mapped[str] = mapped_column(String(36))
    key_name: Mapped[str | None] = mapped_column(String(255))
    reservation_id: Mapped[str] = mapped_column(String(32))
    launch_index: Mapped[int] = mapped_column(Integer)
    properties: Mapped[dict[str, str]] = mapped_column("metadata", JSON)
    tags: Mapped[list[str]] = mapped_column(JSON)
    request: Mapped[dict[str, Any]] = mapped_column(JSON, deferred=True)
    nics: Mapped[list[dict[str, Any]]] = mapped_column(JSON, default=list, server_default="[]")
    fault: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    request_id: Mapped[str] = mapped_column(String(64))
    told_by: Mapped[str | None] = mapped_column(String(255))
    told_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    attempt: Mapped[int] = mapped_column(Integer, default=0)
    casts: Mapped[int] = mapped_column(Integer, default=0)
    look_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    looks: Mapped[int] = mapped_column(Integer, default=0)
    terminate_host: Mapped[str | None] = mapped_column(String(255))

    __table_args__ = (
        Index("servers_of_project", "project_id", "deleted_at", "created_at"),
        Index("servers_in_order", "deleted_at", "created_at"),
        Index("servers_to_look_at", "look_at"),
    )


class AddressPoolRow(Table):
    """A network whose addresses the API gives. Its row is locked while one is chosen."""

    __tablename__ = "address_pools"

    network_id: Mapped[str] = mapped_column(String(36), primary_key=True)


class AddressRow(Table):
    """An address that a server has. Once its host has deleted the server, the next that needs one may take it."""

    __tablename__ = "addresses"

    network_id: Mapped[str] = mapped_column(String(36), primary_key=True)
    address: Mapped[str] = mapped_column(String(45), primary_key=True)
    server_id: Mapped[str] = mapped_column(String(36), ForeignKey("servers.id", ondelete="CASCADE"))

    __table_args__ = (Index("addresses_of_server", "server_id"),)
