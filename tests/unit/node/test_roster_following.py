"""A node's roster kept new, whatever an orchestrator says or does not say."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dim_pipelines.bus.memory import MemoryBus
from dim_pipelines.content.memory import MemoryContentStore
from dim_pipelines.discovery.memory_names import MemoryNameService
from dim_pipelines.discovery.roster_hints import ROSTER, write_roster_hint
from dim_pipelines.discovery.roster_record import make_root_record, publish_roster
from dim_pipelines.domain.cid import DAG_CBOR, Cid
from dim_pipelines.domain.ipns import ipns_name
from dim_pipelines.errors import NodeUnreachable
from dim_pipelines.identity.keys import public_bytes
from dim_pipelines.identity.membership import Membership
from dim_pipelines.identity.roster import RosterView
from dim_pipelines.node import roster_following
from dim_pipelines.node.contacts import Contact, Contacts
from dim_pipelines.node.roster_following import MembershipKeeper, RosterFollower
from dim_pipelines.testing.networks import MadeNetwork, now_ms
from dim_pipelines.wire.v1 import orchestrator_pb2

Words = list[Any]
"""What a stream says: updates; an exception breaks it; it stays open at the end."""


def update(view: RosterView, *, pages: bool = True) -> orchestrator_pb2.RosterUpdate:
    return orchestrator_pb2.RosterUpdate(roster=view.signed, pages=view.pages if pages else ())


class Call:
    """A stream of WatchRoster."""

    def __init__(self, words: Words, follow: bool) -> None:
        self._words = words
        self._follow = follow

    async def initial_metadata(self) -> Any:
        return ()

    def cancel(self) -> None: ...

    async def __aiter__(self) -> AsyncIterator[Any]:
        for word in self._words:
            if isinstance(word, BaseException):
                raise word
            yield word
        if self._follow:
            await asyncio.Event().wait()


@dataclass
class Orchestrator:
    """Says one list of words after the other, one for each stream."""

    name: str
    streams: deque[Words]
    label: str = "o"
    addresses: tuple[str, ...] = ("127.0.0.1:1",)
    certificate: bytes = b"der"
    asked: list[int] = field(default_factory=list)

    def WatchRoster(self, request: orchestrator_pb2.WatchRosterRequest, timeout: float | None) -> Call:
        assert (timeout is None) is request.follow
        self.asked.append(request.version)
        return Call(self.streams.popleft() if self.streams else [], request.follow)


class Told(Contacts):
    def __init__(self, *orchestrators: Orchestrator) -> None:
        super().__init__(lambda: orchestrators, lambda: pytest.fail("nothing is dialled"), random.Random(1))

    def stub(self, contact: Contact) -> Any:
        return contact


@dataclass
class Home:
    """A node's membership, and what is newer than it."""

    made: MadeNetwork
    node: Membership

    @asynccontextmanager
    async def following(self, *orchestrators: Orchestrator) -> AsyncIterator[RosterFollower]:
        follower = RosterFollower(MembershipKeeper(self.node), Told(*orchestrators), random.Random(1))
        task = asyncio.create_task(follower.run())
        try:
            yield follower
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def until(self, wanted: Callable[[], object]) -> None:
        news = asyncio.Event()
        silence = self.node.on_roster(lambda view: news.set())
        try:
            while not wanted():
                await asyncio.wait_for(news.wait(), 60)
                news.clear()
        finally:
            silence()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setattr(roster_following, "_PAUSES", (0.01, 0.02))
    monkeypatch.setattr(roster_following, "LOOK_EVERY_S", 0.01)
    made = MadeNetwork(tmp_path)
    return Home(made, made.join("n", "node"))


def broken() -> BaseException:
    return grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), details="gone")


async def test_each_newer_roster_of_a_stream_is_taken(home: Home) -> None:
    words: Words = []
    for label in ("a", "b"):
        home.made.join(label, "user")
        words.append(update(home.made.roster))
    version = home.node.roster.version
    orchestrator = Orchestrator("a", deque([words]))
    async with home.following(orchestrator) as follower:
        await home.until(lambda: home.node.roster.version == version + 2)
        assert follower.watching == "o" and follower.seen_ms and not follower.error
    assert orchestrator.asked == [version]


async def test_an_older_or_forged_roster_changes_nothing_and_a_newer_one_is_taken_still(
    home: Home, tmp_path: Path
) -> None:
    old = home.node.roster
    home.made.join("a", "user")
    middle = home.made.roster
    home.node.keep_roster(middle.signed, middle.pages, now_ms())
    foreign = MadeNetwork(tmp_path / "foreign").roster
    home.made.join("b", "user")
    newest = home.made.roster
    orchestrator = Orchestrator("a", deque([[update(old), update(foreign)], [update(newest)]]))
    async with home.following(orchestrator):
        await home.until(lambda: home.node.roster.version == newest.version)
    assert orchestrator.asked[0] == middle.version and home.node.network == home.made.id


async def test_where_pages_are_missing_all_are_asked_for(home: Home) -> None:
    home.made.join("a", "user")
    newest = home.made.roster
    orchestrator = Orchestrator("a", deque([[update(newest, pages=False)], [update(newest)]]))
    async with home.following(orchestrator):
        await home.until(lambda: home.node.roster.version == newest.version)
    assert orchestrator.asked[:2] == [newest.version - 1, 0]


async def test_a_stream_that_breaks_is_opened_again_wherever_somebody_answers(home: Home) -> None:
    home.made.join("a", "user")
    newest = home.made.roster
    streams: deque[Words] = deque([[broken()], [broken()], [update(newest)]])
    async with home.following(Orchestrator("a", deque([[broken()]] * 50)), Orchestrator("b", streams)):
        await home.until(lambda: home.node.roster.version == newest.version)


async def test_what_another_process_of_the_home_has_kept_is_taken_without_any_orchestrator(home: Home) -> None:
    home.made.join("a", "user")
    newest = home.made.roster
    other = Membership.load(home.node.home)
    assert other is not None
    async with home.following():
        other.keep_roster(newest.signed, newest.pages, now_ms())
        await home.until(lambda: home.node.roster.version == newest.version)


async def test_a_hint_asks_whoever_answers_once(home: Home) -> None:
    home.made.join("a", "user")
    newest = home.made.roster
    contacts = Told(Orchestrator("a", deque([[broken()]])), Orchestrator("b", deque([[update(newest)]])))
    await RosterFollower(MembershipKeeper(home.node), contacts, random.Random(1)).fetch()
    assert home.node.roster.version == newest.version
    with pytest.raises(NodeUnreachable, match="no orchestrator gives"):
        await RosterFollower(MembershipKeeper(home.node), Told(Orchestrator("a", deque([[broken()]])))).fetch()


async def test_a_hint_on_the_bus_leads_to_the_newer_roster_and_rubbish_to_nothing(home: Home) -> None:
    home.made.join("a", "user")
    newest = home.made.roster
    told = Orchestrator(ipns_name(public_bytes(home.made.key)), deque([[update(newest)]]))
    follower = RosterFollower(MembershipKeeper(home.node), Told(told))
    bus, another = MemoryBus(home.made.id, home.made.key), MemoryBus(home.made.id, Ed25519PrivateKey.generate())
    task = asyncio.create_task(follower.take_hints(bus))
    try:
        await asyncio.sleep(0)
        await bus.publish(ROSTER, b"rubbish")
        cid = Cid.of(DAG_CBOR, newest.signed)
        await another.publish(ROSTER, write_roster_hint(newest.version + 1, cid))  # it is no orchestrator
        await asyncio.sleep(0)
        assert not told.asked
        await bus.publish(ROSTER, write_roster_hint(newest.version, cid))
        await home.until(lambda: home.node.roster.version == newest.version)
        assert len(told.asked) == 1
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await bus.close()
        await another.close()


async def test_the_roster_is_found_by_the_networks_name_alone(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roster_following, "RESOLVE_EVERY_S", 0.01)
    home.made.join("a", "user")
    newest = home.made.roster
    names, store = MemoryNameService(), MemoryContentStore()
    root = make_root_record(home.made.root, newest.roster.delegation)
    await publish_roster(newest, home.made.admission, names, store, root_record=root)
    follower = RosterFollower(MembershipKeeper(home.node), Told())
    task = asyncio.create_task(follower.resolve(home.made.id, names, store))
    try:
        await home.until(lambda: home.node.roster.version == newest.version)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
