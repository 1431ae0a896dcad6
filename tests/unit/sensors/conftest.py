"""A node table and who is in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dim_pipelines.database.engine import Database, open_database
from dim_pipelines.testing.known_nodes import KnownNodes


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = open_database(f"sqlite:///{tmp_path / 'dim.db'}")
    yield opened
    opened.close()


@pytest.fixture
def known(database: Database) -> KnownNodes:
    return KnownNodes(database)
