"""What every name service promises, run against each of them.

A new service adds a line to `SERVICES` and an opener to `service`.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dim_pipelines.discovery.embedded_names import EmbeddedNameService
from dim_pipelines.discovery.kubo_names import KuboNameService
from dim_pipelines.discovery.memory_names import MemoryNameService
from dim_pipelines.discovery.names import MAX_RECORD_BYTES, NameService
from dim_pipelines.discovery.record import name_of, sign_record, verify_record
from dim_pipelines.errors import DiscoveryError, InputError, NameUnresolved, RecordExpired, RecordForged, RolledBack

SERVICES = ("memory", "embedded", "kubo")
VALUE = "/ipfs/bafkqaaa"


@pytest.fixture(params=SERVICES)
async def service(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[NameService]:
    opened: NameService
    if request.param == "memory":
        opened = MemoryNameService()
    elif request.param == "embedded":
        opened = EmbeddedNameService(tmp_path / "names")
    else:
        opened = KuboNameService(request.getfixturevalue("kubo_address"))
    yield opened
    await opened.close()


def now_ms() -> int:
    return time.time_ns() // 1_000_000


class Author:
    """A key that nobody has used yet, and its records."""

    def __init__(self) -> None:
        self.key = Ed25519PrivateKey.generate()
        self.name = name_of(self.key)

    def record(self, sequence: int, *, value: str = VALUE, lives_ms: int = 600_000, extra: int = 0) -> bytes:
        said = {"v": 1, "filler": b"x" * extra} if extra else None
        return sign_record(self.key, value, sequence, now_ms() + lives_ms, 0, said)


@pytest.fixture
def author() -> Author:
    return Author()


async def test_gives_the_same_bytes_back(service: NameService, author: Author) -> None:
    record = author.record(1, extra=5_000)
    await service.put(author.name, record)
    assert await service.get(author.name) == record


async def test_the_same_record_again_is_fine(service: NameService, author: Author) -> None:
    record = author.record(1)
    await service.put(author.name, record)
    await service.put(author.name, record)
    assert await service.get(author.name) == record


async def test_the_newer_record_replaces_the_older(service: NameService, author: Author) -> None:
    for sequence in (1, 2, 500):
        await service.put(author.name, author.record(sequence))
        assert verify_record(await service.get(author.name), author.name).sequence == sequence


async def test_an_older_record_changes_nothing(service: NameService, author: Author) -> None:
    newest = author.record(10)
    await service.put(author.name, newest)
    for stale in (author.record(9), author.record(0), author.record(10, value="/ipfs/other")):
        with pytest.raises(RolledBack):
            await service.put(author.name, stale)
        assert await service.get(author.name) == newest


async def test_an_expired_record_is_refused(service: NameService, author: Author) -> None:
    with pytest.raises(RecordExpired):
        await service.put(author.name, author.record(1, lives_ms=-1_000))
    with pytest.raises(NameUnresolved):
        await service.get(author.name, 1.0)


@pytest.mark.parametrize("cut", [0, 1, 100, -1])
async def test_a_record_that_is_cut_short_is_refused(service: NameService, author: Author, cut: int) -> None:
    with pytest.raises(RecordForged):
        await service.put(author.name, author.record(1)[:cut])
    with pytest.raises(NameUnresolved):
        await service.get(author.name, 1.0)


async def test_a_changed_record_is_refused(service: NameService, author: Author) -> None:
    record = author.record(1)
    changed = record.replace(VALUE.encode(), b"/ipfs/bafkqaab")
    assert changed != record
    with pytest.raises(RecordForged):
        await service.put(author.name, changed)


async def test_another_keys_record_is_refused(service: NameService, author: Author) -> None:
    with pytest.raises(RecordForged):
        await service.put(author.name, Author().record(1))


async def test_too_large_a_record_is_refused(service: NameService, author: Author) -> None:
    record = author.record(1)
    padded = record + b"\x82\x01" + b"\x80\x50" + b"x" * MAX_RECORD_BYTES  # field 32, which nobody knows
    with pytest.raises(RecordForged):
        await service.put(author.name, padded)


async def test_an_unknown_name_is_unresolved(service: NameService, author: Author) -> None:
    with pytest.raises(NameUnresolved):
        await service.get(author.name, 2.0)


@pytest.mark.parametrize("name", ["", "k51", "../../etc/passwd", "k51/../../x", "self", "/ipns/"])
async def test_what_is_no_name_is_refused(service: NameService, author: Author, name: str) -> None:
    with pytest.raises((InputError, DiscoveryError)):
        await service.put(name, author.record(1))
    with pytest.raises((InputError, DiscoveryError)):
        await service.get(name, 1.0)


async def test_names_do_not_disturb_each_other(service: NameService) -> None:
    authors = [Author() for _ in range(5)]
    records = {each.name: each.record(number + 1) for number, each in enumerate(authors)}
    for name, record in records.items():
        await service.put(name, record)
    assert {name: await service.get(name) for name in records} == records
