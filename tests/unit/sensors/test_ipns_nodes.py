"""The sensor's rule: what Dagster is told of the node table, how much at a time, and when batches wait."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import dagster as dg
import pytest

from dim_pipelines.database.engine import Database
from dim_pipelines.discovery.node_states import Healthy, Revoked, Tick, Unhealthy
from dim_pipelines.dispatch.portal import Portal
from dim_pipelines.errors import ContentUnavailable
from dim_pipelines.orchestrator.dagster_daemon import limit_pool, pool_limit
from dim_pipelines.orchestrator.network_view import NetworkView
from dim_pipelines.sensors.ipns_nodes import (
    IDLE_SNAPSHOT_MS,
    MAX_CHANGES,
    SNAPSHOT_MS,
    News,
    Told,
    find_news,
    ipns_nodes,
    read_cursor,
    wanted_slots,
    write_cursor,
)
from dim_pipelines.testing.known_nodes import NETWORK, KnownNodes

NOW = 1_700_000_000_000


class Ear:
    """Dagster, as far as it remembers what it was told."""

    def __init__(self, known: KnownNodes) -> None:
        self.known = known
        self.told = Told(network=NETWORK)
        self.partitions: list[str] = []

    def tick(self, now_ms: int = NOW, quorum: int = 1) -> News:
        news = find_news(self.known.table.rows(), self.told, self.partitions, now_ms, quorum=quorum, slots=4)
        self.told = read_cursor(write_cursor(news.told))
        self.partitions = sorted({*self.partitions, *news.add} - set(news.delete))
        return news


@pytest.fixture
def ear(known: KnownNodes) -> Ear:
    return Ear(known)


def _nodes(news: News) -> dict[str, str]:
    """Node → its state, as told; and that each was told once."""
    found = [event for event in news.events if isinstance(event, dg.AssetMaterialization) and event.partition]
    said = {str(event.partition): str(event.metadata["dim/state"].value) for event in found}
    assert len(said) == len(found)
    return said


def _pool(news: News) -> list[dg.AssetMaterialization]:
    return [each for each in news.events if isinstance(each, dg.AssetMaterialization) and not each.partition]


def _checks(news: News) -> dict[str, bool]:
    return {each.check_name: each.passed for each in news.events if isinstance(each, dg.AssetCheckEvaluation)}


def test_a_node_is_told_when_it_joins_and_when_it_changes_and_not_in_between(ear: Ear) -> None:
    ear.known.publish("ann", NOW)
    news = ear.tick()
    assert (_nodes(news), news.add) == ({"ann": "VERIFIED"}, ["ann"])

    ear.known.happen("ann", Healthy(NOW), NOW)
    assert (_nodes(ear.tick()), ear.partitions) == ({"ann": "ELIGIBLE"}, ["ann"])

    ear.known.publish("ann", NOW + 60_000)  # the same again, a minute later
    assert _nodes(ear.tick(NOW + 60_000)) == {}

    ear.known.publish("ann", NOW + 90_000, paused=True)
    assert _nodes(ear.tick(NOW + 90_000)) == {"ann": "ELIGIBLE"}


def test_a_node_that_is_gone_says_so_once_and_loses_its_partition(ear: Ear) -> None:
    ear.known.join("ann", NOW)
    ear.tick()
    ear.known.happen("ann", Unhealthy("no answer"), NOW + 1000)
    assert _nodes(ear.tick(NOW + 1000)) == {"ann": "SUSPECT"}
    ear.known.happen("ann", Tick(), NOW + 180_000)
    news = ear.tick(NOW + 180_000)

    assert (_nodes(news), news.delete) == ({"ann": "GONE"}, ["ann"])
    again = ear.tick(NOW + 181_000)
    assert (_nodes(again), again.delete, again.add) == ({}, [], [])

    ear.known.publish("ann", NOW + 200_000)
    back = ear.tick(NOW + 200_000)
    assert (_nodes(back), back.add) == ({"ann": "VERIFIED"}, ["ann"])


def test_a_node_that_came_and_went_unseen_is_not_told(ear: Ear) -> None:
    ear.known.join("ann", NOW)
    ear.known.happen("ann", Revoked("its key was lost"), NOW)
    news = ear.tick()

    assert (_nodes(news), news.add, news.delete) == ({}, [], [])


def test_a_thousand_changes_are_told_fifty_at_a_time_and_each_once(ear: Ear) -> None:
    for number in range(2 * MAX_CHANGES + 7):
        ear.known.publish(f"n{number:03}", NOW)
    told: list[str] = []
    for pages in (MAX_CHANGES, MAX_CHANGES, 7, 0):
        news = ear.tick()
        assert len(_nodes(news)) == len(news.add) == pages
        told += _nodes(news)

    assert len(told) == len(set(told)) == 2 * MAX_CHANGES + 7
    assert sorted(told) == ear.partitions


def test_a_node_that_changes_while_others_are_told_is_told_as_it_is_last(ear: Ear) -> None:
    for number in range(MAX_CHANGES + 1):
        ear.known.publish(f"n{number:03}", NOW)
    ear.tick()
    ear.known.happen("n050", Healthy(NOW), NOW)
    ear.known.happen("n000", Healthy(NOW), NOW)

    assert _nodes(ear.tick()) == {"n000": "ELIGIBLE", "n050": "ELIGIBLE"}
    assert _nodes(ear.tick()) == {}


def test_a_renamed_node_moves_to_another_partition(ear: Ear) -> None:
    ear.known.join("ann", NOW)
    ear.tick()
    ear.known.publish("ann", NOW + 1000, label="anna")
    news = ear.tick(NOW + 1000)

    assert (list(_nodes(news)), news.add, news.delete) == (["anna"], ["anna"], ["ann"])


def test_partitions_that_somebody_changed_by_hand_are_mended(ear: Ear) -> None:
    ear.known.join("ann", NOW)
    ear.known.join("ben", NOW)
    ear.tick()
    ear.partitions = ["ann", "stranger"]
    news = ear.tick()

    assert (news.add, news.delete) == (["ben"], ["stranger"])


def test_a_snapshot_is_taken_once_a_minute_at_most_and_every_ten_where_nothing_changes(ear: Ear) -> None:
    ear.known.join("ann", NOW)
    (first,) = _pool(ear.tick(NOW))
    assert first.metadata["dim/eligible"].value == 1

    ear.known.happen("ann", Unhealthy("no answer"), NOW + 1000)
    assert _pool(ear.tick(NOW + 1000)) == []
    assert _pool(ear.tick(NOW + SNAPSHOT_MS - 1)) == []
    (second,) = _pool(ear.tick(NOW + SNAPSHOT_MS))
    assert (second.metadata["dim/eligible"].value, second.metadata["dim/suspect"].value) == (0, 1)

    quiet = NOW + SNAPSHOT_MS + IDLE_SNAPSHOT_MS
    assert _pool(ear.tick(quiet - 1)) == []
    assert len(_pool(ear.tick(quiet))) == 1


def test_a_clock_that_went_back_does_not_stop_the_snapshots(ear: Ear) -> None:
    ear.known.join("ann", NOW)
    ear.tick(NOW)

    assert len(_pool(ear.tick(NOW - 3_600_000))) == 1


def test_checks_are_told_with_a_snapshot_and_as_soon_as_their_answer_changes(ear: Ear) -> None:
    ear.known.join("ann", NOW)
    assert _checks(ear.tick()) == {"quorum": True, "stale_records": True}
    assert _checks(ear.tick(NOW + 1000)) == {}

    ear.known.happen("ann", Unhealthy("no answer"), NOW + 2000)
    assert _checks(ear.tick(NOW + 2000)) == {"quorum": False}
    assert _checks(ear.tick(NOW + 3000)) == {}
    assert _checks(ear.tick(NOW + SNAPSHOT_MS)) == {"quorum": False, "stale_records": True}


def test_a_node_that_answers_but_renews_nothing_is_found(ear: Ear) -> None:
    ear.known.join("ann", NOW)
    ear.known.join("ben", NOW)
    ear.tick()
    ear.known.publish("ben", NOW + 120_000)

    assert _checks(ear.tick(NOW + 134_000)) == {}
    news = ear.tick(NOW + 136_000)
    assert _checks(news) == {"stale_records": False}
    (event,) = [each for each in news.events if isinstance(each, dg.AssetCheckEvaluation)]
    assert event.metadata["nodes"].value == {"ann": "44 s left"}


def test_another_table_is_told_from_its_beginning(ear: Ear) -> None:
    ear.known.join("ann", NOW)
    ear.told = replace(ear.told, change=1000)

    assert _nodes(ear.tick()) == {"ann": "ELIGIBLE"}


@pytest.mark.parametrize("cursor", [None, "", "nonsense", "7", "[]", '{"change": "x"}', '{"checks": 3}', "null"])
def test_a_foreign_cursor_is_an_empty_one(cursor: str | None) -> None:
    assert read_cursor(cursor) == Told()


def test_batches_have_slots_while_a_node_takes_work(known: KnownNodes) -> None:
    assert wanted_slots(known.table.rows(), True, 4) == 0
    known.publish("ann", NOW)
    assert wanted_slots(known.table.rows(), True, 4) == 0
    known.happen("ann", Healthy(NOW), NOW)
    assert wanted_slots(known.table.rows(), True, 4) == 4
    known.publish("ann", NOW + 1, paused=True)
    assert wanted_slots(known.table.rows(), True, 4) == 0
    known.publish("ann", NOW + 2, draining=True)
    assert wanted_slots(known.table.rows(), True, 4) == 0
    assert wanted_slots(known.table.rows(), False, 4) == 4  # batches use others, of which nothing is known here


class Tower:
    """The whole sensor over a real Dagster instance."""

    def __init__(self, instance: dg.DagsterInstance, database: Database, portal: Portal, known: KnownNodes) -> None:
        self.instance, self.database, self.portal = instance, database, portal
        self.view = NetworkView(NETWORK, known.table)
        self.cursor: str | None = None

    def tick(self) -> dg.SensorResult:
        context = dg.build_sensor_context(instance=self.instance, cursor=self.cursor)
        answer: Any = ipns_nodes(context, network=self.view, database=self.database, portal=self.portal)
        assert isinstance(answer, dg.SensorResult)
        self.cursor = answer.cursor or self.cursor
        return answer


@pytest.fixture
def tower(database: Database, known: KnownNodes) -> Iterator[Tower]:
    with dg.instance_for_test() as instance, Portal() as portal:
        yield Tower(instance, database, portal, known)


def test_a_tick_gives_the_pool_its_slots_and_takes_them_away(tower: Tower, known: KnownNodes) -> None:
    now = time.time_ns() // 1_000_000
    assert pool_limit(tower.instance) is None
    assert "batches wait for a node" in str(tower.tick().skip_reason)
    assert pool_limit(tower.instance) == 0
    known.join("ann", now)
    answer = tower.tick()
    assert "10 batches may compute at a time" in str(answer.skip_reason)
    assert pool_limit(tower.instance) == 10  # max_concurrent_runs of an instance that says nothing else
    assert [request.partition_keys for request in answer.dynamic_partitions_requests or ()] == [["ann"]]
    known.happen("ann", Unhealthy("no answer"), now + 1)
    tower.tick()
    assert pool_limit(tower.instance) == 0


def test_a_home_without_a_network_is_left_alone(tower: Tower, known: KnownNodes) -> None:
    tower.view = replace(tower.view, network="")
    answer = tower.tick()
    assert "this home is in no network" in str(answer.skip_reason)
    assert (answer.asset_events, pool_limit(tower.instance)) == ([], None)

    limit_pool(tower.instance, 3)  # a person's own
    tower.tick()
    assert pool_limit(tower.instance) == 3

    limit_pool(tower.instance, 0)  # left from a network that the home was in
    tower.tick()
    assert pool_limit(tower.instance) is None


def test_a_sensor_on_its_own_looks_for_records_itself_but_not_at_every_tick(tower: Tower, known: KnownNodes) -> None:
    asked: list[float] = []

    async def survey(timeout_s: float) -> str:
        asked.append(timeout_s)
        return "asked for 3 records"

    tower.view = replace(tower.view, survey=survey)
    assert "asked for 3 records" in str(tower.tick().skip_reason)
    assert "asked" not in str(tower.tick().skip_reason)
    assert asked == [5.0]


def test_a_survey_that_fails_leaves_what_is_known(tower: Tower, known: KnownNodes) -> None:
    async def survey(timeout_s: float) -> str:
        raise ContentUnavailable("the Kubo does not answer")

    known.join("ann", time.time_ns() // 1_000_000)
    tower.view = replace(tower.view, survey=survey)
    answer = tower.tick()

    assert "no records could be looked for: the Kubo does not answer" in str(answer.skip_reason)
    assert pool_limit(tower.instance) == 10
    assert len(answer.asset_events) == 4


def test_the_sensor_runs_by_default_and_asks_for_no_run(tower: Tower) -> None:
    assert ipns_nodes.default_status is dg.DefaultSensorStatus.RUNNING
    assert ipns_nodes.minimum_interval_seconds == 5
    assert tower.tick().run_requests in (None, [])
