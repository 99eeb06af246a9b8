"""The way to the SQL database: sessions for reading and for writing, and what is wrong with it in our errors."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, nullcontext
from typing import Any, Final

import structlog
from sqlalchemy import event, make_url, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine

from sev_agent.api.tables import REVISION
from sev_agent.config import ConfigurationError, DatabaseSection
from sev_agent.errors import Unavailable
from sev_agent.uninterrupted import raise_if_cancelled, uninterrupted

log = structlog.stdlib.get_logger(__name__)

_DRIVERS: Final = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg"}
_WATCH_SECONDS: Final = 5.0
WRITES: Final = "sev_writes"
"""The execution option of a connection that will write."""


class DatabaseUnavailable(Unavailable):
    """The database cannot be reached, or does not answer in time."""

    code = "database.unavailable"


class WrongRevision(ConfigurationError):
    """The database has other tables than this version of the program needs."""

    code = "database.revision"


class Database:
    """One database, shared by all parts of a process, and by all processes.

    SQLite allows one writer at a time: here they wait in line, for a lock in this process and for the file's own.
    """

    def __init__(self, settings: DatabaseSection) -> None:
        url = _url(settings)
        self.name = url.render_as_string(hide_password=True)
        self._is_sqlite = url.get_backend_name() == "sqlite"
        self._is_checked = False
        limits = {"timeout": settings.timeout} | ({} if self._is_sqlite else {"command_timeout": settings.timeout})
        self.engine: AsyncEngine = create_async_engine(
            url,
            pool_size=settings.pool_size,
            max_overflow=0,
            pool_timeout=settings.timeout,
            pool_pre_ping=not self._is_sqlite,
            connect_args=limits,
        )
        if self._is_sqlite:
            _prepare_sqlite(self.engine)
        self._sessions = async_sessionmaker(self.engine, expire_on_commit=False)
        self._writer: AbstractAsyncContextManager[Any] = asyncio.Lock() if self._is_sqlite else nullcontext()

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncSession]:
        """A session for questions. Raises ``DatabaseUnavailable``."""
        with self._errors():
            async with self._sessions() as session:
                yield session

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncSession]:
        """A transaction, committed at the end. Raises ``DatabaseUnavailable``, and what SQLAlchemy finds wrong."""
        with self._errors():
            async with self._writer, self._sessions() as session:
                if self._is_sqlite:
                    await session.connection(execution_options={WRITES: True})
                yield session
                await session.commit()

    async def check_revision(self) -> None:
        """Raises ``WrongRevision``, ``DatabaseUnavailable``."""
        with self._errors():
            async with self.engine.connect() as connection:
                try:
                    found = (await connection.execute(text("SELECT version_num FROM alembic_version"))).scalar()
                except DBAPIError as error:
                    if _says_gone(error) and "no such table" not in str(error):
                        raise
                    found = None
        if found != REVISION:
            state = "has no tables yet" if found is None else f"is at revision {found}"
            raise WrongRevision(
                f"the database {self.name} {state}, but revision {REVISION} is needed",
                field="database.url",
                remedy="run 'sev-agent db upgrade' with the same configuration",
            )
        self._is_checked = True

    async def watch(self, on_change: Callable[[str | None], None]) -> None:
        """Ask every few seconds whether the database is there, until cancelled; ``on_change`` hears why not.

        Raises ``WrongRevision`` where it has come up with other tables than are needed.
        """
        while True:
            raise_if_cancelled()
            try:
                await uninterrupted(self._ask())
                on_change(None)
            except DatabaseUnavailable as error:
                on_change(str(error))
            await asyncio.sleep(_WATCH_SECONDS)

    async def _ask(self) -> None:
        if not self._is_checked:
            await self.check_revision()
        async with self.reading() as session:
            await session.execute(text("SELECT 1"))

    async def close(self) -> None:
        await self.engine.dispose()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (OSError, PoolTimeout, InterfaceError) as error:
            raise self._unavailable(error) from error
        except DBAPIError as error:
            if _says_gone(error):
                raise self._unavailable(error) from error
            raise

    def _unavailable(self, error: BaseException) -> DatabaseUnavailable:
        cause = getattr(error, "orig", None) or error
        return DatabaseUnavailable(
            f"the database {self.name} cannot be used: {cause or type(cause).__name__}",
            remedy="check that it runs, and database.url; then ask again",
        )


def _url(settings: DatabaseSection) -> URL:
    try:
        url = make_url(settings.url.get_secret_value())
        return url.set(drivername=_DRIVERS[url.get_backend_name()])
    except (ValueError, KeyError) as error:
        raise ConfigurationError(f"is no database's address: {error}", field="database.url") from None


def _prepare_sqlite(engine: AsyncEngine) -> None:
    """Transactions that begin when we say, for writing at once; the write-ahead log is set by the upgrade."""

    @event.listens_for(engine.sync_engine, "connect")
    def connected(connection: Any, _: Any) -> None:
        # Python's driver begins transactions by itself, and too late for two writers.
        connection.isolation_level = None
        cursor = connection.cursor()
        for pragma in ("synchronous=FULL", "foreign_keys=ON"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def begun(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.get_execution_options().get(WRITES) else "BEGIN")


def _says_gone(error: DBAPIError) -> bool:
    if error.connection_invalidated or isinstance(error, OperationalError):
        return True
    # asyncpg: PostgreSQL is starting up, shutting down, out of connections, the statement took too long, or it was
    # chosen to give way to another.
    state = getattr(error.orig, "sqlstate", None) or ""
    return state[:2] in {"08", "40", "53", "57"} or isinstance(error.orig, (OSError, TimeoutError))
