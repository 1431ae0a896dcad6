"""What DIM tells and asks a Dagster instance. The only module of this floor with Dagster in it."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import dagster as dg

from dim_pipelines.domain.cid import Cid
from dim_pipelines.errors import ConfigurationError, ContentNotFound, DimError
from dim_pipelines.orchestrator.dagster_instance import DEFINITIONS, PARTITIONS, POOL, write_dagster_home
from dim_pipelines.settings import Home

CID_KEY: Final = "dim/cid"
"""The metadata key under which a materialization keeps the CID of its value."""
MOST_SLOTS: Final = 1_000
"""The most slots that Dagster gives a pool."""
LOST_S: Final = 120.0
"""A run that keeps a slot, but has given no sign of life for so long, has lost it."""
DAEMON_SILENT_S: Final = 90.0
"""A sensor daemon whose last heartbeat is older than this is taken for dead (it beats every 30 s)."""


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
        if not sensors_run(instance):
            lift_pool(instance)  # nobody would give the pool its slots back when a node comes


def sensors_run(instance: dg.DagsterInstance) -> bool:
    """Tell whether a daemon of this instance evaluates sensors."""
    heartbeat = instance.get_daemon_heartbeats().get("SENSOR")
    return heartbeat is not None and time.time() - heartbeat.timestamp < DAEMON_SILENT_S


def configured_concurrency(instance: dg.DagsterInstance) -> int:
    """Give how many runs the instance's settings allow at a time: the slots that the pool of batches has."""
    queue = instance.get_concurrency_config().run_queue_config
    wanted = -1 if queue is None else queue.max_concurrent_runs
    return MOST_SLOTS if wanted < 0 else min(max(wanted, 1), MOST_SLOTS)


def limit_pool(instance: dg.DagsterInstance, slots: int) -> bool:
    """Give the pool of batches its slots; 0: batches wait.

    Returns:
        False where it has that many already, or the instance's storage knows no pools.
    """
    storage = instance.event_log_storage
    if not storage.supports_global_concurrency_limits or pool_limit(instance) == slots:
        return False
    storage.set_concurrency_slots(POOL, slots)
    return True


def pool_limit(instance: dg.DagsterInstance) -> int | None:
    """Give how many slots the pool of batches has; None where it has no limit."""
    return next((each.limit for each in instance.event_log_storage.get_pool_limits() if each.name == POOL), None)


def lift_pool(instance: dg.DagsterInstance) -> bool:
    """Take away a limit of 0, which only whoever watches the nodes may leave standing; tell whether there was one."""
    if pool_limit(instance) != 0:
        return False
    instance.event_log_storage.delete_concurrency_limit(POOL)
    return True


def free_lost_slots(instance: dg.DagsterInstance, heard_ms: Callable[[str], int | None], now_ms: int) -> list[str]:
    """Take slots of the pool back from runs whose process is gone.

    Dagster does so for runs that have ended. A run that was killed stays STARTED where its launcher cannot tell, and
    would keep its slot for ever.

    Args:
        instance: the Dagster instance.
        heard_ms: gives the last sign of life of a batch (Unix milliseconds); None: there is no such batch.
        now_ms: Unix time in milliseconds.

    Returns:
        The ids of the runs that have lost theirs.
    """
    storage = instance.event_log_storage
    if not storage.supports_global_concurrency_limits:
        return []
    silent_ms = now_ms - round(LOST_S * 1000)
    lost = []
    for run_id in sorted({slot.run_id for slot in storage.get_concurrency_info(POOL).claimed_slots}):
        record = instance.get_run_record_by_id(run_id)
        if record is not None:
            batch = record.dagster_run.tags.get("dagster/partition")
            signs = [record.start_time, record.end_time, record.create_timestamp.timestamp()]
            heard = max(round(sign * 1000) for sign in signs if sign is not None)
            if not record.dagster_run.is_finished and batch is not None:
                heard = max(heard, heard_ms(batch) or 0)
            if heard > silent_ms:
                continue
        storage.free_concurrency_slots_for_run(run_id)
        lost.append(run_id)
    return lost


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
