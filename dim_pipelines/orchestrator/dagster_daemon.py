"""What DIM tells and asks a Dagster instance. The only module of this floor with Dagster in it."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import dagster as dg

from dim_pipelines.domain.cid import Cid
from dim_pipelines.errors import ConfigurationError, ContentNotFound, DimError
from dim_pipelines.orchestrator.dagster_instance import DEFINITIONS, PARTITIONS, write_dagster_home
from dim_pipelines.settings import Home

CID_KEY: Final = "dim/cid"
"""The metadata key under which a materialization keeps the CID of its value."""


@contextmanager
def open_instance(home: Home) -> Iterator[dg.DagsterInstance]:
    """Open the home's Dagster instance, and make its tables where there are none.

    Dagster's processes must not be the first to do so: two of them that start together on a fresh SQLite both make
    the tables, and one of them dies of it. So this is done here once, behind a lock.

    Raises:
        ConfigurationError: the instance cannot be opened or written.
    """
    folder = write_dagster_home(home)
    try:
        with (folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            opened = dg.DagsterInstance.from_config(str(folder))
        with opened as instance:
            yield instance
    except DimError:
        raise
    except Exception as error:  # the instance's storage is a plug-in and raises what it likes
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigurationError(f"the Dagster instance in {folder} does not open: {first}") from error


def prepare_instance(home: Home) -> None:
    """Make the home's Dagster instance ready for its processes to start; see `open_instance`."""
    with open_instance(home):
        pass


def add_partition(home: Home, batch: str) -> None:
    """Make the batch known as a partition, so that it can be materialized by hand; adding it twice is adding it once.

    Raises:
        ConfigurationError: as `open_instance`.
    """
    with open_instance(home) as instance:
        instance.add_dynamic_partitions(PARTITIONS, [batch])


def find_cid(instance: dg.DagsterInstance, asset: dg.AssetKey, partition: str | None) -> Cid:
    """Give the CID of the newest materialization of an asset, in the partition where one is named.

    Raises:
        ContentNotFound: it was never materialized, or by something that keeps no CID.
    """
    wanted = dg.AssetRecordsFilter(asset_key=asset, asset_partitions=None if partition is None else [partition])
    records = instance.fetch_materializations(wanted, limit=1).records
    found = records[0].asset_materialization if records else None
    value = None if found is None else found.metadata.get(CID_KEY)
    if value is not None and isinstance(value.value, str):
        return Cid.parse(value.value)
    name = asset.to_user_string()
    chosen, where = ("", "") if partition is None else (f" --partition {partition}", f" of batch {partition}")
    raise ContentNotFound(
        f"this Dagster instance knows no {name}{where}",
        hint=f"materialize it first: dagster asset materialize -m {DEFINITIONS} --select {name}{chosen}",
    )
