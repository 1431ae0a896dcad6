"""The one SQLAlchemy engine of a process, with the migrations done before anybody uses it.

SQLite: WAL, `synchronous=FULL` (an epoch that a power cut takes back would be given out twice), a busy timeout,
and BEGIN IMMEDIATE for writing (a deferred transaction that turns into a writer fails at once instead of waiting).
Postgres: the schema `dim` by search_path.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, Engine, create_engine, event, inspect, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from dim_pipelines.database.tables import HEAD, SCHEMA, VERSION_TABLE
from dim_pipelines.errors import ConfigurationError

BUSY_TIMEOUT_MS: Final = 30_000
"""How long SQLite waits for another process's write."""
_POSTGRES_LOCK: Final = 0x64696D  # "dim": the advisory lock of migrations

_databases: dict[tuple[int, str], Database] = {}
_guard = threading.Lock()


@dataclass(frozen=True, slots=True)
class Database:
    """An open, migrated database."""

    engine: Engine

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Give a connection in a transaction that commits at the end.

        Raises:
            ConfigurationError: the database cannot be reached or written.
        """
        with _translated(self.engine.url), self.engine.begin() as connection:
            yield connection

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Give a connection for reading, which waits for no writer.

        Raises:
            ConfigurationError: the database cannot be reached.
        """
        with _translated(self.engine.url), self.engine.connect() as connection:
            yield connection.execution_options(dim_read=True)

    def close(self) -> None:
        """Give back the connections; the next `open_database` makes new ones."""
        with _guard:
            for key in [key for key, value in _databases.items() if value is self]:
                del _databases[key]
        self.engine.dispose()


def open_database(url: str) -> Database:
    """Open the database at `url`, migrate it where needed, and keep one engine per process and URL.

    Several processes may do this at once on a database that does not exist yet.

    Raises:
        ConfigurationError: the URL is wrong, the database does not answer, or it was made by a newer DIM.
    """
    key = (os.getpid(), url)  # a forked child must not use its parent's connections
    with _guard:
        if key in _databases:
            return _databases[key]
        try:
            parsed = make_url(url)
            engine = _make_engine(parsed)
        except (ArgumentError, NoSuchModuleError, ImportError) as error:
            raise ConfigurationError(f"not a database URL that DIM can use: {error}") from error
        try:
            with _translated(parsed):
                _migrate(engine)
        except BaseException:
            engine.dispose()
            raise
        database = _databases[key] = Database(engine)
        return database


def _make_engine(url: URL) -> Engine:
    if url.get_backend_name() == "sqlite":
        engine = create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_MS / 1000})
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    if url.get_backend_name() == "postgresql":
        engine = create_engine(url, pool_pre_ping=True)
        event.listen(engine, "connect", _prepare_postgres)
        return engine
    raise ConfigurationError(f"DIM's database is SQLite or Postgres, not {url.get_backend_name()}")


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # the driver's own BEGIN is deferred and skips DDL; ours is below
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    read = connection.get_execution_options().get("dim_read", False)
    connection.exec_driver_sql("BEGIN" if read else "BEGIN IMMEDIATE")


def _prepare_postgres(connection: Any, _record: Any) -> None:
    cursor = connection.cursor()
    cursor.execute(f"SET search_path TO {SCHEMA}")
    cursor.close()
    connection.commit()


def _migrate(engine: Engine) -> None:
    if engine.dialect.name == "sqlite":
        with _file_lock(engine.url):
            raw = engine.raw_connection()
            try:
                raw.cursor().execute("PRAGMA journal_mode=WAL")  # kept in the file; needs a moment alone
            finally:
                raw.close()
            with engine.begin() as connection:
                _upgrade(connection)
        return
    with engine.begin() as connection:
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _POSTGRES_LOCK})
        connection.execute(text(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}"))
        _upgrade(connection)


def _upgrade(connection: Connection) -> None:
    found = None
    if inspect(connection).has_table(VERSION_TABLE):
        found = connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar()
    if found == HEAD:
        return
    if found is not None and found > HEAD:
        raise ConfigurationError(
            f"the database has schema {found}, this DIM knows {HEAD}", hint="update DIM, or use another DIM_HOME"
        )
    from alembic import command  # imported late: it costs 0.2 s and is needed once per database
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


@contextmanager
def _file_lock(url: URL) -> Iterator[None]:
    if not url.database or url.database == ":memory:":
        yield
        return
    path = Path(url.database)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise ConfigurationError(f"cannot write the database {path}: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _translated(url: URL) -> Iterator[None]:
    try:
        yield
    except (SQLAlchemyError, sqlite3.Error) as error:  # a pragma of a new connection fails outside SQLAlchemy
        cause = getattr(error, "orig", None) or error
        first = (str(cause).splitlines() or [type(cause).__name__])[0]
        raise ConfigurationError(f"the database {url.render_as_string(hide_password=True)} failed: {first}") from error
