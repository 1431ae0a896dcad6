"""DIM's own database as a resource."""

from collections.abc import Generator
from contextlib import contextmanager

import dagster as dg
from pydantic import Field

from dim_pipelines.database.engine import Database, open_database
from dim_pipelines.settings import Home


class DatabaseResource(dg.ConfigurableResource[Database]):
    """DIM's own tables: the batches and how far they are."""

    url: str = Field(
        default="",
        description="SQLAlchemy URL. Empty: the variable DIM_DATABASE_URL, else SQLite in DIM_HOME.",
    )

    @contextmanager
    def yield_for_execution(self, context: dg.InitResourceContext) -> Generator[Database, None, None]:
        """Open the database; it stays open, because a process has one engine and sensors tick in several threads."""
        yield open_database(self.url or Home.at().database_url)
