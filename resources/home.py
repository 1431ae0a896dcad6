"""DIM_HOME as a resource."""

from collections.abc import Generator
from contextlib import contextmanager

import dagster as dg

from dim_pipelines.settings import Home


class HomeResource(dg.ConfigurableResource[Home]):
    """Where this installation keeps its state: the variable DIM_HOME, else the platform's data folder.

    It has no setting of its own, because every resource of a process must mean the same home.
    """

    @contextmanager
    def yield_for_execution(self, context: dg.InitResourceContext) -> Generator[Home, None, None]:
        """Give the home."""
        yield Home.at()
