"""The publisher: the same bytes by every road, the newest wins, and no road disturbs another."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dim_pipelines.bus.memory import MemoryBus, MemoryHub
from dim_pipelines.discovery import publisher as module
from dim_pipelines.discovery.announcement import read_announcement
from dim_pipelines.discovery.memory_names import MemoryNameService
from dim_pipelines.discovery.publisher import BusRoad, NameRoad, Publisher, Road
from dim_pipelines.discovery.record import read_node_record
from dim_pipelines.domain.advertisement import RecordFields
from dim_pipelines.errors import ConfigurationError, ContentUnavailable, RolledBack
from dim_pipelines.testing.node_records import NAME, NETWORK, NODE, NOW, fields

PATIENCE_S = 60.0


class Recorder:
    """A road that remembers, and fails or hangs when it is told to."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.error: Exception | None = None
        self.open = asyncio.Event()
        self.open.set()

    async def send(self, name: str, raw: bytes) -> None:
        assert name == NAME
        if self.error is not None:
            raise self.error
        await self.open.wait()
        self.sent.append(raw)

    def sequences(self) -> list[int]:
        return [read_node_record(raw, NAME).sequence for raw in self.sent]


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


@asynccontextmanager
async def running(publisher: Publisher):  # type: ignore[no-untyped-def]
    task = asyncio.create_task(publisher.run())
    try:
        yield publisher
    finally:
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled() and task.exception() is not None:
            raise task.exception()  # type: ignore[misc]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "COALESCE_S", 0.01)
    monkeypatch.setattr(module, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(module, "LONGEST_PAUSE_S", 0.02)


def make(
    tmp_path: Path, roads: dict[str, Road], make_fields: Callable[[], RecordFields] = fields, **options: object
) -> Publisher:
    return Publisher(NODE, make_fields, roads, tmp_path / "sequences.json", **options)  # type: ignore[arg-type]


async def test_the_same_bytes_go_by_every_road(tmp_path: Path) -> None:
    names, hub, announce = MemoryNameService(), MemoryHub(), Recorder()
    bus = MemoryBus(NETWORK, NODE, hub)
    roads: dict[str, Road] = {"names": NameRoad(names), "bus": BusRoad(bus), "announce": announce}
    async with bus.subscribe("nodes") as hints, running(make(tmp_path, roads)) as publisher:
        async with asyncio.timeout(PATIENCE_S):
            name, by_bus = read_announcement((await anext(hints)).body)
        await until(lambda: all(state.sent for state in publisher.roads().values()))
        assert name == NAME
        assert await names.get(NAME) == by_bus == announce.sent[0] == publisher.record
        assert {state.sequence for state in publisher.roads().values()} == set(announce.sequences())


async def test_a_change_is_published_and_changes_that_come_together_are_one(tmp_path: Path) -> None:
    road = Recorder()
    said = ["a:1"]
    async with running(make(tmp_path, {"road": road}, lambda: fields(endpoints=tuple(said)))) as publisher:
        await until(lambda: len(road.sent) == 1)
        for number in range(2, 30):
            said[0] = f"a:{number}"
            publisher.changed()
        await until(lambda: len(road.sent) == 2)
        assert read_node_record(road.sent[1], NAME).fields.endpoints == ("a:29",)
        assert road.sequences() == sorted(set(road.sequences()))


async def test_it_is_published_again_and_again(tmp_path: Path) -> None:
    road = Recorder()
    async with running(make(tmp_path, {"road": road}, interval_s=0.02)):
        await until(lambda: len(road.sent) >= 4)
    assert road.sequences() == sorted(set(road.sequences()))


async def test_a_road_that_hangs_holds_up_nobody_and_gets_the_newest_afterwards(tmp_path: Path) -> None:
    hung, other = Recorder(), Recorder()
    hung.open.clear()
    async with running(make(tmp_path, {"hung": hung, "other": other}, interval_s=0.02)) as publisher:
        await until(lambda: len(other.sent) >= 5)
        assert not hung.sent
        assert publisher.roads()["hung"].ok_ms == 0
        hung.open.set()
        await until(lambda: len(hung.sent) >= 2)
    assert hung.sequences()[1] >= other.sequences()[4]  # those between were skipped


async def test_a_road_that_fails_is_shown_tried_again_and_recovers(tmp_path: Path) -> None:
    broken, other = Recorder(), Recorder()
    broken.error = ContentUnavailable("no Kubo answers")
    async with running(make(tmp_path, {"broken": broken, "other": other})) as publisher:
        await until(lambda: publisher.roads()["broken"].failures >= 3)
        assert publisher.roads()["broken"].error == "no Kubo answers"
        assert publisher.roads()["other"].error == ""
        assert len(other.sent) == 1
        broken.error = None
        await until(lambda: broken.sent)
        state = publisher.roads()["broken"]
        assert (state.error, state.sent) == ("", 1)
        assert state.failures >= 3
        assert broken.sent == other.sent


async def test_where_a_newer_record_stands_a_newer_one_is_made(tmp_path: Path) -> None:
    road = Recorder()
    road.error = RolledBack("sequence 9 stands")
    made: list[int] = []

    def make_fields() -> RecordFields:
        made.append(1)
        if len(made) >= 3:
            road.error = None
        return fields()

    async with running(make(tmp_path, {"road": road}, make_fields)) as publisher:
        await until(lambda: road.sent)
        assert publisher.roads()["road"].failures >= 2


async def test_fields_that_cannot_be_made_end_nothing(tmp_path: Path) -> None:
    road = Recorder()
    fails = [True]

    def make_fields() -> RecordFields:
        if fails[0]:
            raise ConfigurationError("controls.yaml is damaged")
        return fields()

    async with running(make(tmp_path, {"road": road}, make_fields)) as publisher:
        await asyncio.sleep(0)
        assert not road.sent
        fails[0] = False
        publisher.changed()
        await until(lambda: road.sent)


async def test_sequences_go_on_after_a_restart_with_a_clock_that_went_back(tmp_path: Path) -> None:
    road = Recorder()
    for clock_ms in (NOW, NOW - 3_600_000, NOW):
        before = len(road.sent)
        async with running(make(tmp_path, {"road": road}, clock_ms=lambda now=clock_ms: now)):
            await until(lambda count=before: len(road.sent) > count)
    assert road.sequences() == [NOW, NOW + 1, NOW + 2]


async def test_a_file_that_cannot_be_written_keeps_the_sequence_unused(tmp_path: Path) -> None:
    road = Recorder()
    (tmp_path / "folder").write_bytes(b"a file stands where the folder should")
    publisher = Publisher(NODE, fields, {"road": road}, tmp_path / "folder" / "sequences.json")
    async with running(publisher):
        for _ in range(20):
            await asyncio.sleep(0.005)
        assert not road.sent
        assert publisher.record is None


def test_the_name_is_that_of_the_key(tmp_path: Path) -> None:
    assert make(tmp_path, {}).name == NAME
    assert Publisher(Ed25519PrivateKey.generate(), fields, {}, tmp_path / "x").name != NAME
