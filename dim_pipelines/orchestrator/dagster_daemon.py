"""The few things that DIM tells a Dagster instance from outside a run. The only module of this floor with Dagster in it."""

from __future__ import annotations

import dagster as dg

from dim_pipelines.errors import ConfigurationError
from dim_pipelines.orchestrator.dagster_instance import PARTITIONS, write_dagster_home
from dim_pipelines.settings import Home


def add_partition(home: Home, batch: str) -> None:
    """Make the batch known as a partition, so that it can be materialized by hand; adding it twice is adding it once.

    Raises:
        ConfigurationError: the home's Dagster instance cannot be opened or written.
    """
    folder = write_dagster_home(home)
    try:
        with dg.DagsterInstance.from_config(str(folder)) as instance:
            instance.add_dynamic_partitions(PARTITIONS, [batch])
    except Exception as error:  # the instance's storage is a plug-in and raises what it likes
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigurationError(f"the Dagster instance in {folder} does not open: {first}") from error
