"""What a listener takes and what it drops."""

from __future__ import annotations

import asyncio
import itertools

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dim_pipelines.bus import inbox as module
from dim_pipelines.bus.inbox import CARRIER_BURST, SENDER_BURST, WAITING, Inbox
from dim_pipelines.bus.memory import MemoryBus, MemoryHub, hub_of
from dim_pipelines.bus.message import sign_hint
from dim_pipelines.bus.rate_limit import RateLimit

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER = Ed25519PrivateKey.from_private_bytes(b"o" * 32)


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def inbox(clock: Clock) -> Inbox:
    return Inbox("n", "nodes", clock)


def hint(sequence: int, key: Ed25519PrivateKey = KEY, body: bytes = b"x") -> bytes:
    return sign_hint(key, "n", "nodes", sequence, body)


async def drained(inbox: Inbox) -> list[int]:
    """Give the sequences that wait."""
    found: list[int] = []
    hints = inbox.hints()
    while inbox._waiting:
        found.append((await anext(hints)).sequence)
    return found


async def test_repeated_and_older_hints_are_dropped(inbox: Inbox) -> None:
    assert [inbox.offer(hint(number), "a") for number in (5, 5, 4, 6, 5)] == [True, False, False, True, False]
    assert inbox.offer(hint(4, OTHER), "a")  # each sender counts for itself
    assert await drained(inbox) == [5, 6, 4]
    assert inbox.dropped == {"repeated": 3}


async def test_an_invalid_hint_takes_nothing_from_the_one_it_names(inbox: Inbox) -> None:
    """Whoever forges a hint of high sequence must not make its alleged sender silent."""
    forged = bytearray(hint(1_000))
    forged[-1] ^= 1
    assert not inbox.offer(bytes(forged), "a")
    assert inbox.offer(hint(5), "b")
    assert inbox.dropped == {"invalid": 1}


async def test_a_sender_that_floods_is_slowed_and_others_are_not(inbox: Inbox, clock: Clock) -> None:
    taken = sum(inbox.offer(hint(number), "a") for number in range(1, 500))
    assert taken == SENDER_BURST
    assert inbox.offer(hint(1, OTHER), "a")
    clock.now += 1.0
    assert inbox.offer(hint(1_000), "a")
    assert inbox.dropped["sender_rate"] == 499 - SENDER_BURST


async def test_a_carrier_that_floods_costs_no_signatures_beyond_its_rate(
    inbox: Inbox, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked = itertools.count()
    read = module.read_hint
    monkeypatch.setattr(module, "read_hint", lambda *given: (next(checked), read(*given))[1])
    for _ in range(10_000):  # what a hostile peer sends in a second
        inbox.offer(b"bogus", "hostile")
    assert next(checked) == CARRIER_BURST
    assert inbox.dropped == {"invalid": CARRIER_BURST, "carrier_rate": 10_000 - CARRIER_BURST}
    assert inbox.offer(hint(1), "honest")


async def test_a_slow_listener_loses_the_oldest(inbox: Inbox, clock: Clock) -> None:
    for number in range(1, WAITING + 11):
        clock.now += 1.0
        assert inbox.offer(hint(number), "a")
    assert await drained(inbox) == list(range(11, WAITING + 11))
    assert inbox.dropped == {"slow": 10}


async def test_memory_is_bounded_over_senders(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    monkeypatch.setattr(module, "SENDERS", 3)
    inbox = Inbox("n", "nodes", clock)
    for _ in range(10):
        inbox.offer(hint(1, Ed25519PrivateKey.generate()), "a")
    assert len(inbox._newest) == 3


def test_rates_are_kept_for_a_bounded_number_of_keys(clock: Clock) -> None:
    limit: RateLimit[int] = RateLimit(1.0, 2.0, clock, most=5)
    for key in range(100):
        assert limit.allows(key)
    assert len(limit) == 5
    assert limit.allows(99)
    assert not limit.allows(99)
    clock.now += 0.5
    assert not limit.allows(99)
    clock.now += 0.5
    assert limit.allows(99)
    clock.now += 1_000
    assert [limit.allows(99) for _ in range(3)] == [True, True, False]


async def test_hints_that_are_lost_repeated_and_reordered_break_nothing() -> None:
    hub = MemoryHub()
    bus = MemoryBus("n", KEY, hub)
    async with bus.subscribe("nodes") as hints:
        for number in (2, 2, 5, 3, 5, 9):
            hub.carry("nodes", hint(number))
        hub.carry("nodes", b"garbage")
        hub.carry("roster", hint(10))
        async with asyncio.timeout(60):
            assert [(await anext(hints)).sequence for _ in range(3)] == [2, 5, 9]
    assert bus.dropped == {"repeated": 3, "invalid": 1}


def test_the_parts_of_a_process_share_a_hub_per_network() -> None:
    hub = hub_of("n1")
    assert hub_of("n1") is hub
    assert hub_of("n2") is not hub
