"""The database opens, migrates and says clearly when it cannot."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, inspect, text

import dim_pipelines.database
from dim_pipelines.database.engine import open_database
from dim_pipelines.database.tables import HEAD, VERSION_TABLE, metadata
from dim_pipelines.errors import ConfigurationError

MIGRATIONS = Path(dim_pipelines.database.__file__).parent / "migrations"


def url(folder: Path) -> str:
    return f"sqlite:///{folder / 'sub' / 'dim.db'}"


def test_a_new_database_has_the_tables_that_the_code_names(tmp_path: Path) -> None:
    database = open_database(url(tmp_path))
    assert open_database(url(tmp_path)) is database
    found = inspect(database.engine)
    assert set(found.get_table_names()) == {*metadata.tables, VERSION_TABLE}
    for name, table in metadata.tables.items():
        columns = {column["name"]: (str(column["type"]), column["nullable"]) for column in found.get_columns(name)}
        named = {column.name: (str(column.type), column.nullable) for column in table.columns}
        assert columns == named
        assert {index["name"] for index in found.get_indexes(name)} == {index.name for index in table.indexes}
    with database.read() as connection:
        assert connection.execute(text("PRAGMA journal_mode")).scalar() == "wal"
        assert connection.execute(text("PRAGMA synchronous")).scalar() == 2
        assert connection.execute(text("PRAGMA foreign_keys")).scalar() == 1
    database.close()
    assert open_database(url(tmp_path)) is not database


def test_head_is_the_newest_migration() -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    assert ScriptDirectory.from_config(config).get_heads() == [HEAD]


def test_several_processes_may_open_a_new_database_at_once(tmp_path: Path) -> None:
    program = f"from dim_pipelines.database.engine import open_database; open_database({url(tmp_path)!r})"
    children = [subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE) for _ in range(3)]
    for child in children:
        _, errors = child.communicate(timeout=60)
        assert child.returncode == 0, errors


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    open_database(url(tmp_path)).close()
    engine = create_engine(url(tmp_path))
    with engine.begin() as connection:
        connection.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = '9999'"))
    engine.dispose()
    with pytest.raises(ConfigurationError, match="schema 9999"):
        open_database(url(tmp_path))


def test_a_transaction_that_fails_leaves_nothing(tmp_path: Path) -> None:
    database = open_database(url(tmp_path))
    insert = (
        "INSERT INTO batches (id, owner, spec, state, request, epoch, created_ms, updated_ms)"
        " VALUES ('a', 'o', '{}', 'q', 1, 0, 1, 1)"
    )
    with pytest.raises(ValueError, match="mine"), database.write() as connection:
        connection.execute(text(insert))
        raise ValueError("mine")
    with database.read() as connection:
        assert connection.execute(text("SELECT count(*) FROM batches")).scalar() == 0
    with pytest.raises(ConfigurationError, match="no such table"), database.write() as connection:
        connection.execute(text("DELETE FROM missing"))
    database.close()


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ("no url", "not a database URL"),
        ("mysql://x/y", "SQLite or Postgres, not mysql"),
        ("postgresql+nothing://x/y", "not a database URL"),
        ("sqlite:////proc/nowhere/dim.db", "cannot write the database"),
    ],
)
def test_a_wrong_url_is_a_clear_error(bad: str, why: str) -> None:
    with pytest.raises(ConfigurationError, match=why):
        open_database(bad)


def test_a_file_that_is_no_database_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "dim.db").write_bytes(b"this is not SQLite, it only lies where a database should" * 100)
    with pytest.raises(ConfigurationError, match="not a database"):
        open_database(f"sqlite:///{tmp_path / 'dim.db'}")
