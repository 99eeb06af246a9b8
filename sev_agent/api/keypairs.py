"""Key pairs: each user's public keys, by name. Only the public half is ever here."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

from sqlalchemy import delete, func, select
from sqlalchemy.exc import IntegrityError

from sev_agent.api import quota
from sev_agent.api.database import Database
from sev_agent.api.faults import BadRequest, ConflictingRequest, Forbidden, ItemNotFound
from sev_agent.api.public_keys import read_public_key
from sev_agent.api.tables import KeypairRow

MAX_KEYPAIRS: Final = 100
"""What a user may have, as with Nova's quota ``key_pairs``."""


class Keypairs:
    """The key pairs in the database. They belong to a user, not to a project."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, user_id: str, name: str, public_key: str) -> KeypairRow:
        """Raises ``BadRequest`` for what is no key, ``ConflictingRequest`` for a name that is taken, ``Forbidden``."""
        key = read_public_key(public_key)
        row = KeypairRow(
            user_id=user_id,
            name=name,
            type="ssh",
            fingerprint=key.fingerprint,
            public_key=key.text,
            created_at=datetime.now(UTC),
        )
        try:
            async with self._database.writing() as session:
                await quota.hold(session, user_id)
                held = await session.scalar(
                    select(func.count()).select_from(KeypairRow).where(KeypairRow.user_id == user_id)
                )
                if (held or 0) >= MAX_KEYPAIRS:
                    raise Forbidden(f"Quota exceeded, too many key pairs: {MAX_KEYPAIRS}.", remedy="delete one first")
                session.add(row)
                await session.flush()
        except IntegrityError:
            raise ConflictingRequest(f"Key pair '{name}' already exists.") from None
        return row

    async def list(self, user_id: str, *, most: int, marker: str | None) -> Sequence[KeypairRow]:
        """In the order of their names, those after ``marker``. Raises ``BadRequest`` where that is gone."""
        wanted = select(KeypairRow).where(KeypairRow.user_id == user_id).order_by(KeypairRow.name).limit(most)
        async with self._database.reading() as session:
            if marker is not None:
                if await session.get(KeypairRow, (user_id, marker)) is None:
                    raise BadRequest(f"marker [{marker}] not found")
                wanted = wanted.where(KeypairRow.name > marker)
            return (await session.scalars(wanted)).all()

    async def get(self, user_id: str, name: str) -> KeypairRow:
        """Raises ``ItemNotFound``."""
        async with self._database.reading() as session:
            row = await session.get(KeypairRow, (user_id, name))
        if row is None:
            raise _not_found(user_id, name)
        return row

    async def delete(self, user_id: str, name: str) -> None:
        """Servers keep the key that they were made with. Raises ``ItemNotFound``."""
        async with self._database.writing() as session:
            named = (KeypairRow.user_id == user_id, KeypairRow.name == name)
            gone = await session.scalars(delete(KeypairRow).where(*named).returning(KeypairRow.name))
            if gone.one_or_none() is None:
                raise _not_found(user_id, name)


def _not_found(user_id: str, name: str) -> ItemNotFound:
    return ItemNotFound(f"Keypair {name} not found for user {user_id}")
