"""The pool of batches: its slots, and how a run that is gone loses the one it kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import dagster as dg
import pytest
from dagster._daemon.types import DaemonHeartbeat

from dim_pipelines.orchestrator.dagster_daemon import (
    LOST_S,
    MOST_SLOTS,
    add_partition,
    configured_concurrency,
    free_lost_slots,
    lift_pool,
    limit_pool,
    open_instance,
    pool_limit,
)
from dim_pipelines.orchestrator.dagster_instance import PARTITIONS, POOL
from dim_pipelines.settings import Home


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.instance_for_test() as opened:
        yield opened


@dg.op
def nothing() -> None:
    """Do nothing."""


@dg.job
def idle() -> None:
    """Do nothing."""
    nothing()


def _run(instance: dg.DagsterInstance, batch: str, status: dg.DagsterRunStatus) -> str:
    """Make a run of a batch that has claimed a slot."""
    run = instance.create_run_for_job(idle, tags={"dagster/partition": batch}, status=status)
    claimed = instance.event_log_storage.claim_concurrency_slot(POOL, run.run_id, "results")
    assert claimed.is_claimed
    return run.run_id


def _holders(instance: dg.DagsterInstance) -> set[str]:
    return {slot.run_id for slot in instance.event_log_storage.get_concurrency_info(POOL).claimed_slots}


def _later() -> int:
    return round((time.time() + LOST_S + 1) * 1000)


def test_the_limit_is_written_only_where_it_changes(instance: dg.DagsterInstance) -> None:
    assert pool_limit(instance) is None
    assert [limit_pool(instance, slots) for slots in (4, 4, 0, 0, 2)] == [True, False, True, False, True]
    assert pool_limit(instance) == 2


def test_only_a_limit_of_nought_is_lifted(instance: dg.DagsterInstance) -> None:
    assert not lift_pool(instance)
    limit_pool(instance, 4)
    assert not lift_pool(instance)
    assert pool_limit(instance) == 4
    limit_pool(instance, 0)
    assert lift_pool(instance)
    assert pool_limit(instance) is None


def test_an_instance_without_pools_has_nothing_to_limit() -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        assert not limit_pool(instance, 3)
        assert free_lost_slots(instance, lambda batch: None, _later()) == []


@pytest.mark.parametrize(("configured", "slots"), [(3, 3), (0, 1), (-1, MOST_SLOTS), (5000, MOST_SLOTS)])
def test_the_concurrency_is_that_of_the_instances_settings(configured: int, slots: int) -> None:
    overrides = {"concurrency": {"runs": {"max_concurrent_runs": configured}}}
    with dg.instance_for_test(overrides=overrides) as instance:
        assert configured_concurrency(instance) == slots


def test_dims_own_instance_lets_four_batches_compute(tmp_path: Any) -> None:
    with open_instance(Home.at(tmp_path)) as instance:
        assert configured_concurrency(instance) == 4


@pytest.mark.parametrize(
    ("heard", "lost"),
    [
        pytest.param(lambda now: now - 1000, False, id="its batch gives signs of life"),
        pytest.param(lambda now: now - 3_600_000, True, id="its batch was last heard of an hour ago"),
        pytest.param(lambda now: None, True, id="its batch is not known"),
    ],
)
def test_a_run_that_was_killed_loses_its_slot(
    instance: dg.DagsterInstance, heard: Callable[[int], int | None], lost: bool
) -> None:
    limit_pool(instance, 1)
    run = _run(instance, "b1", dg.DagsterRunStatus.STARTED)
    now = _later()
    asked: list[str] = []

    def heard_ms(batch: str) -> int | None:
        asked.append(batch)
        return heard(now)

    assert free_lost_slots(instance, heard_ms, now) == ([run] if lost else [])
    assert _holders(instance) == (set() if lost else {run})
    assert asked == ["b1"]


def test_a_run_that_has_just_begun_keeps_its_slot(instance: dg.DagsterInstance) -> None:
    limit_pool(instance, 1)
    run = _run(instance, "b1", dg.DagsterRunStatus.STARTED)

    assert free_lost_slots(instance, lambda batch: None, round(time.time() * 1000)) == []
    assert _holders(instance) == {run}


def test_a_run_that_has_ended_loses_its_slot_though_its_batch_lives_on_in_another(instance: dg.DagsterInstance) -> None:
    limit_pool(instance, 2)
    ended, live = _run(instance, "b1", dg.DagsterRunStatus.FAILURE), _run(instance, "b1", dg.DagsterRunStatus.STARTED)
    now = _later()

    assert free_lost_slots(instance, lambda batch: now, now) == [ended]
    assert _holders(instance) == {live}


def test_a_run_that_was_deleted_loses_its_slot(instance: dg.DagsterInstance) -> None:
    limit_pool(instance, 1)
    run = _run(instance, "b1", dg.DagsterRunStatus.STARTED)
    instance.run_storage.delete_run(run)

    assert free_lost_slots(instance, lambda batch: None, round(time.time() * 1000)) == [run]


def test_a_batch_by_hand_does_not_wait_for_a_sensor_that_is_not_there(tmp_path: Any) -> None:
    home = Home.at(tmp_path)
    with open_instance(home) as instance:
        limit_pool(instance, 0)
        instance.add_daemon_heartbeat(DaemonHeartbeat(time.time(), "SENSOR", None, []))
    add_partition(home, "b1")
    with open_instance(home) as instance:
        assert pool_limit(instance) == 0
        instance.add_daemon_heartbeat(DaemonHeartbeat(time.time() - 600, "SENSOR", None, []))
    add_partition(home, "b2")
    with open_instance(home) as instance:
        assert pool_limit(instance) is None
        assert list(instance.get_dynamic_partitions(PARTITIONS)) == ["b1", "b2"]
