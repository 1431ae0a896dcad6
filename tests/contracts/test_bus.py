"""What every bus promises, run against each of them.

Hints may be lost, so each test says again what it said until it was heard. A new bus adds a line to `BUSES` and an
opener to `make_bus`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dim_pipelines.bus.bus import MAX_BODY_BYTES, Bus, Hint
from dim_pipelines.bus.kubo import KuboBus
from dim_pipelines.bus.memory import MemoryBus
from dim_pipelines.errors import InputError
from dim_pipelines.identity.keys import public_bytes

BUSES = ("memory", "kubo")
PATIENCE_S = 60.0

MakeBus = Callable[[Ed25519PrivateKey], Bus]


@pytest.fixture
def network() -> str:
    return f"k51{os.urandom(8).hex()}"


@pytest.fixture(params=BUSES)
async def make_bus(request: pytest.FixtureRequest, network: str) -> AsyncIterator[MakeBus]:
    opened: list[Bus] = []

    def make(key: Ed25519PrivateKey, in_network: str = network) -> Bus:
        bus: Bus
        if request.param == "memory":
            bus = MemoryBus(in_network, key)
        else:
            bus = KuboBus(request.getfixturevalue("kubo_address"), in_network, key)
        opened.append(bus)
        return bus

    yield make
    for bus in opened:
        await bus.close()


async def hear(bus: Bus, topic: str, body: bytes, hints: AsyncIterator[Hint]) -> Hint:
    """Say something until it is heard."""

    async def say() -> None:
        while True:
            await bus.publish(topic, body)
            await asyncio.sleep(0.2)

    saying = asyncio.create_task(say())
    try:
        async with asyncio.timeout(PATIENCE_S):
            while True:
                hint = await anext(hints)
                if hint.body == body:
                    return hint
    finally:
        saying.cancel()
        await asyncio.wait([saying])


async def test_a_hint_reaches_who_listens_and_its_sender(make_bus: MakeBus) -> None:
    key = Ed25519PrivateKey.generate()
    sender, other = make_bus(key), make_bus(Ed25519PrivateKey.generate())
    async with other.subscribe("nodes") as theirs, sender.subscribe("nodes") as own:
        for hints in (theirs, own):
            hint = await hear(sender, "nodes", b"\x00body\xff", hints)
            assert hint.topic == "nodes"
            assert hint.sender == public_bytes(key)


async def test_hints_of_one_sender_come_once_and_in_order(make_bus: MakeBus) -> None:
    sender, other = make_bus(Ed25519PrivateKey.generate()), make_bus(Ed25519PrivateKey.generate())
    async with other.subscribe("nodes") as hints:
        await hear(sender, "nodes", b"ready", hints)
        for number in range(20):
            await sender.publish("nodes", b"%d" % number)
        last = await hear(sender, "nodes", b"last", hints_seen := _Seen(hints))
        assert last.body == b"last"
        bodies = [hint.body for hint in hints_seen.seen if hint.body not in (b"ready", b"last")]
        numbers = [int(body) for body in bodies]
        assert numbers == sorted(set(numbers))
        assert numbers  # some may be lost, all may not
        sequences = [hint.sequence for hint in hints_seen.seen]
        assert sequences == sorted(set(sequences))


class _Seen:
    """An iterator that remembers what it gave."""

    def __init__(self, hints: AsyncIterator[Hint]) -> None:
        self._hints = hints
        self.seen: list[Hint] = []

    def __aiter__(self) -> _Seen:
        return self

    async def __anext__(self) -> Hint:
        hint = await anext(self._hints)
        self.seen.append(hint)
        return hint


async def test_topics_and_networks_are_apart(make_bus: MakeBus, network: str) -> None:
    key = Ed25519PrivateKey.generate()
    sender, stranger = make_bus(key), make_bus(Ed25519PrivateKey.generate(), f"{network}x")  # type: ignore[call-arg]
    listener = make_bus(Ed25519PrivateKey.generate())
    async with listener.subscribe("nodes") as hints:
        await hear(sender, "nodes", b"ready", hints)
        await sender.publish("roster", b"another topic")
        await stranger.publish("nodes", b"another network")
        seen = _Seen(hints)
        await hear(sender, "nodes", b"last", seen)
        assert {hint.body for hint in seen.seen} <= {b"ready", b"last"}


async def test_a_body_of_16_kib_travels_and_a_larger_one_is_refused(make_bus: MakeBus) -> None:
    bus = make_bus(Ed25519PrivateKey.generate())
    async with bus.subscribe("nodes") as hints:
        body = os.urandom(MAX_BODY_BYTES)
        assert (await hear(bus, "nodes", body, hints)).body == body
        with pytest.raises(InputError):
            await bus.publish("nodes", body + b"x")


async def test_nobody_has_to_listen(make_bus: MakeBus) -> None:
    await make_bus(Ed25519PrivateKey.generate()).publish("nodes", b"into the void")


async def test_many_at_once_take_turns(make_bus: MakeBus) -> None:
    bus = make_bus(Ed25519PrivateKey.generate())
    async with bus.subscribe("nodes") as hints:
        await hear(bus, "nodes", b"ready", hints)
        await asyncio.gather(*(bus.publish("nodes", b"%d" % number) for number in range(10)))
        seen = _Seen(hints)
        await hear(bus, "nodes", b"last", seen)
        assert {b"%d" % number for number in range(10)} & {hint.body for hint in seen.seen}


async def test_who_has_left_hears_nothing_and_may_come_again(make_bus: MakeBus) -> None:
    bus = make_bus(Ed25519PrivateKey.generate())
    async with bus.subscribe("nodes") as hints:
        await hear(bus, "nodes", b"one", hints)
    async with bus.subscribe("nodes") as hints:
        seen = _Seen(hints)
        await hear(bus, "nodes", b"two", seen)
        assert {hint.body for hint in seen.seen} == {b"two"}
