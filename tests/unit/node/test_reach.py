"""How a node learns whether others reach it, and whom it asks."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from dim_pipelines.errors import Forbidden, NodeUnreachable
from dim_pipelines.node import reach as reach_module
from dim_pipelines.node.advertising import Reachability
from dim_pipelines.node.announcing import AnnounceRoad
from dim_pipelines.node.contacts import Contact, Contacts
from dim_pipelines.node.reach import ReachWatch, decide
from dim_pipelines.wire.v1 import orchestrator_pb2

ENDPOINTS = ("10.0.0.1:7", "[fd00::1]:7")


def test_direct_where_an_endpoint_works_attached_where_none_does() -> None:
    assert decide(ENDPOINTS, ENDPOINTS, "").endpoints == ENDPOINTS
    part = decide(ENDPOINTS, ("[fd00::1]:7", "192.0.2.1:1"), "10.0.0.1:7: no answer")
    assert part.reach == "direct" and part.endpoints == ("[fd00::1]:7",)
    none = decide(ENDPOINTS, (), "10.0.0.1:7: no answer in 3 s")
    assert none.reach == "attached" and none.endpoints == () and "no answer" in none.reason
    assert decide((), (), "").reach == "attached" and "no address" in decide((), (), "").reason


@dataclass(frozen=True)
class Orchestrator:
    name: str
    answer: Callable[[], Any]
    label: str = "o"
    addresses: tuple[str, ...] = ("127.0.0.1:1",)
    certificate: bytes = b"der"


class Asked(Contacts):
    """Contacts whose orchestrators answer by themselves."""

    def __init__(self, *orchestrators: Orchestrator) -> None:
        super().__init__(lambda: orchestrators, lambda: pytest.fail("nothing is dialled"), random.Random(1))
        self.asked: list[str] = []

    async def ask(self, contact: Contact, call: Any, timeout_s: float = 5.0) -> Any:
        assert isinstance(contact, Orchestrator)
        self.asked.append(contact.name)
        answer = contact.answer()
        if isinstance(answer, Exception):
            raise answer
        return answer


def silent() -> Exception:
    return NodeUnreachable("silent")


async def test_the_next_orchestrator_is_asked_where_one_is_silent_and_the_one_that_answered_stays_first() -> None:
    contacts = Asked(Orchestrator("a", silent), Orchestrator("b", lambda: "b"), Orchestrator("c", silent))
    for _ in range(3):
        assert await contacts.ask_one(lambda stub: pytest.fail("not called")) == "b"
    assert contacts.asked[-2:] == ["b", "b"]
    with pytest.raises(NodeUnreachable, match="silent"):
        await Asked(Orchestrator("a", silent)).ask_one(lambda stub: pytest.fail("not called"))
    with pytest.raises(NodeUnreachable, match="names no orchestrator"):
        await Asked().ask_one(lambda stub: pytest.fail("not called"))
    with pytest.raises(NodeUnreachable, match="names no orchestrator"):
        await Asked(Orchestrator("a", silent, addresses=())).tell_all(lambda stub: pytest.fail("not called"))


async def test_a_refusal_is_an_answer() -> None:
    contacts = Asked(Orchestrator("a", lambda: Forbidden("revoked")))
    with pytest.raises(Forbidden, match="revoked"):
        await contacts.ask_one(lambda stub: pytest.fail("not called"))


async def test_one_orchestrator_that_takes_the_record_is_enough() -> None:
    taken = orchestrator_pb2.AnnounceReply(state="VERIFIED", reason="it is new")
    road = AnnounceRoad(Asked(Orchestrator("a", silent), Orchestrator("b", lambda: taken)))
    await road.send("k51", b"record")
    assert (road.state, road.reason) == ("VERIFIED", "it is new")
    with pytest.raises(Forbidden, match="not admitted"):
        await AnnounceRoad(Asked(Orchestrator("a", silent), Orchestrator("b", lambda: Forbidden("not admitted")))).send(
            "k51", b"record"
        )


class Probed:
    """A watch of reach whose orchestrator says what the test wants."""

    def __init__(self) -> None:
        self.endpoints = ENDPOINTS
        self.reachable: tuple[str, ...] | None = None
        self.found: asyncio.Queue[Reachability] = asyncio.Queue()
        self.asked_again = asyncio.Event()
        self.contacts = Asked(Orchestrator("o", self.answer))
        self.watch = ReachWatch(self.contacts, lambda: self.endpoints, lambda: b"der", self.found.put_nowait)

    def answer(self) -> Any:
        if len(self.contacts.asked) > 2:
            self.asked_again.set()
        if self.reachable is None:
            return silent()
        return orchestrator_pb2.ProbeReachReply(reachable=self.reachable, reason="why not")

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.watch.run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def next(self) -> Reachability:
        return await asyncio.wait_for(self.found.get(), 60)


@pytest.fixture
def probed(monkeypatch: pytest.MonkeyPatch) -> Probed:
    monkeypatch.setattr(reach_module, "LOOK_EVERY_S", 0.01)
    monkeypatch.setattr(reach_module, "_RETRY_S", (0.01, 0.02))
    return Probed()


async def test_a_node_hopes_to_be_direct_until_an_orchestrator_says_otherwise(probed: Probed) -> None:
    assert probed.watch.current.reach == "direct" and probed.watch.current.endpoints == ENDPOINTS
    async with probed.running():
        await asyncio.wait_for(probed.asked_again.wait(), 60)  # nobody answers: it asks again
        assert not probed.watch.asked.is_set() and probed.found.empty()
        probed.reachable = ()
        found = await probed.next()
        assert found.reach == "attached" and found.reason == "why not" and probed.watch.asked.is_set()
        probed.reachable = ENDPOINTS
        probed.watch.soon()
        assert (await probed.next()).reach == "direct"


async def test_new_addresses_are_a_reason_to_ask_again(probed: Probed) -> None:
    probed.reachable = ENDPOINTS
    async with probed.running():
        assert (await probed.next()).endpoints == ENDPOINTS
        probed.reachable = ("100.64.0.9:7",)
        probed.endpoints = ("100.64.0.9:7",)
        assert (await probed.next()).endpoints == ("100.64.0.9:7",)


async def test_a_node_without_an_address_is_attached_and_asks_nobody(probed: Probed) -> None:
    probed.endpoints = ()
    async with probed.running():
        assert (await probed.next()).reach == "attached"
    assert probed.contacts.asked == []
