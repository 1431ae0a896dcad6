"""Records in a real private swarm: both ways between DIM and Kubo, never stale, and through every trouble of a Kubo."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dim_pipelines.content.kubo_http import KuboHttp, KuboRefused
from dim_pipelines.discovery.kubo_names import KuboNameService
from dim_pipelines.discovery.record import make_node_record, name_of, read_node_record, sign_record, verify_record
from dim_pipelines.errors import ContentUnavailable, NameUnresolved
from dim_pipelines.testing.node_records import advertisement, fields, models, speeds

Eventually = Callable[[Callable[[], Awaitable[object]]], Awaitable[None]]
VALUE = "/ipfs/bafkqaaa"


def now_ms() -> int:
    return time.time_ns() // 1_000_000


class Author:
    def __init__(self) -> None:
        self.key = Ed25519PrivateKey.generate()
        self.name = name_of(self.key)

    def record(self, sequence: int, lives_ms: int = 600_000) -> bytes:
        return sign_record(self.key, VALUE, sequence, now_ms() + lives_ms, 0)

    def node_record(self) -> bytes:
        said = advertisement(models=models(20), speeds=speeds(5))
        return make_node_record(self.key, fields(said, issued_ms=now_ms()), now_ms(), now_ms())


@pytest.fixture
def author() -> Author:
    return Author()


async def gives(service: KuboNameService, name: str, record: bytes) -> bool:
    return await service.get(name) == record


async def test_kubo_finds_a_nodes_record_valid(swarm: Any, author: Author) -> None:
    http = KuboHttp(swarm.daemons[0].address)
    options = {"verify": author.name, "dump": "false"}
    answer = json.loads(await http.call("name/inspect", options=options, body=author.node_record(), timeout_s=20))
    assert answer["Validation"]["Valid"] is True
    assert answer["SignatureType"] == "V1+V2"
    other = {"verify": Author().name, "dump": "false"}
    answer = json.loads(await http.call("name/inspect", options=other, body=author.node_record(), timeout_s=20))
    assert answer["Validation"]["Valid"] is False


async def test_every_kubo_gives_the_same_bytes(swarm: Any, author: Author, eventually: Eventually) -> None:
    services = [KuboNameService(daemon.address) for daemon in swarm.daemons]
    record = author.node_record()
    await services[2].put(author.name, record)  # the one that only dials out
    for service in services:
        await eventually(lambda service=service: gives(service, author.name, record))  # type: ignore[misc]
    read = read_node_record(await services[0].get(author.name), author.name)
    assert read.advertisement == advertisement(models=models(20), speeds=speeds(5))


async def test_kubo_resolves_a_record_of_ours(swarm: Any, author: Author) -> None:
    await KuboNameService(swarm.daemons[0].address).put(author.name, author.record(1))
    http = KuboHttp(swarm.daemons[0].address)
    answer = json.loads(await http.call("name/resolve", author.name, options={"nocache": "true"}, timeout_s=20))
    assert answer["Path"] == VALUE


async def test_a_record_by_kubo_with_the_same_key_passes_ours(swarm: Any, author: Author) -> None:
    http = KuboHttp(swarm.daemons[1].address)
    pem = author.key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    imported = json.loads(
        await http.call("key/import", author.name, options={"format": "pem-pkcs8-cleartext"}, body=pem, timeout_s=20)
    )
    assert imported["Id"] == author.name  # Kubo gives the key the same name
    options = {"key": author.name, "lifetime": "5m", "ttl": "1m", "resolve": "false", "allow-offline": "true"}
    await http.call("name/publish", VALUE, options=options, timeout_s=60)
    raw = await KuboNameService(swarm.daemons[1].address).get(author.name)
    record = verify_record(raw, author.name)
    assert record.value == VALUE
    assert record.ttl_ns == 60_000_000_000
    assert 240_000 < record.expires_ms - now_ms() < 360_000
    ours = author.record(record.sequence + 1)  # and ours follows Kubo's
    await KuboNameService(swarm.daemons[1].address).put(author.name, ours)
    await http.call("key/rm", author.name, timeout_s=20)


async def test_kubo_itself_refuses_what_is_no_record(swarm: Any, author: Author) -> None:
    http = KuboHttp(swarm.daemons[0].address)
    record = author.record(5)
    for bad in (record[:-1], record + b"\x01", Author().record(5), author.record(5, lives_ms=-1)):
        with pytest.raises(KuboRefused):
            await http.call("name/put", author.name, body=bad, timeout_s=20)
    with pytest.raises(NameUnresolved):
        await KuboNameService(swarm.daemons[0].address).get(author.name, 2.0)


async def test_who_was_away_gives_the_newest_and_not_its_own(
    swarm: Any, author: Author, eventually: Eventually
) -> None:
    """With the stock router it would give what lies in its own store until that ends (facts of Kubo, 5.3)."""
    a, b = swarm.daemons[:2]
    first, second = author.record(1), author.record(2)
    await KuboNameService(a.address).put(author.name, first)
    await eventually(lambda: gives(KuboNameService(b.address), author.name, first))
    addresses = (b.address, b.swarm_addresses)
    swarm.stop(b)
    await KuboNameService(a.address).put(author.name, second)
    b = swarm.daemons[1] = await asyncio.to_thread(swarm.start, "b")
    assert (b.address, b.swarm_addresses) == addresses
    await eventually(lambda: gives(KuboNameService(b.address), author.name, second))


async def test_a_kubo_that_hangs_is_given_up_and_used_again(swarm: Any, author: Author, eventually: Eventually) -> None:
    a = swarm.daemons[0]
    record = author.record(1)
    service = KuboNameService(a.address, put_s=0.5)
    os.kill(a.pid, signal.SIGSTOP)
    try:
        with pytest.raises(ContentUnavailable, match="did not answer name/put in time"):
            await service.put(author.name, record)
        with pytest.raises(ContentUnavailable, match="did not answer name/get in time"):
            await service.get(author.name, 0.1)
    finally:
        os.kill(a.pid, signal.SIGCONT)
    patient = KuboNameService(a.address)

    async def put() -> bool:
        await patient.put(author.name, record)
        return True

    await eventually(put)
    assert await patient.get(author.name) == record


async def test_a_kubo_that_was_killed_answers_again_at_the_same_address(
    swarm: Any, author: Author, eventually: Eventually
) -> None:
    b = swarm.daemons[1]
    address, swarm_addresses, pid = b.address, b.swarm_addresses, b.pid
    record = author.record(1)
    await KuboNameService(swarm.daemons[0].address).put(author.name, record)
    os.kill(pid, signal.SIGKILL)
    service = KuboNameService(address)
    await eventually(lambda: gives(service, author.name, record))
    assert b.pid != pid
    assert b.swarm_addresses == swarm_addresses
