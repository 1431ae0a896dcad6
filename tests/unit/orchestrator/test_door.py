"""The door: who is let in, what is refused before anything is written, and floods."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dim_pipelines.database.engine import open_database
from dim_pipelines.domain.ipns import ipns_name
from dim_pipelines.domain.roster import Limits
from dim_pipelines.errors import (
    AccessError,
    ConfigurationError,
    Forbidden,
    InputError,
    NodeUnreachable,
    QuotaExceeded,
    Unauthenticated,
)
from dim_pipelines.identity.certificates import client_public_key, load_or_create_ca, load_or_create_server
from dim_pipelines.identity.join_requests import join_request
from dim_pipelines.identity.keys import load_or_create_key, public_bytes
from dim_pipelines.orchestrator.admissions import Admissions
from dim_pipelines.orchestrator.door import ADDRESS_BURST, MEMBER_BURST, Door
from dim_pipelines.orchestrator.invites import Admission, Invites
from dim_pipelines.orchestrator.rosters import Rosters
from dim_pipelines.settings import Home
from dim_pipelines.testing.networks import MadeNetwork
from dim_pipelines.wire.v1 import orchestrator_pb2


class World:
    """A network with a door, and somebody who wants in."""

    def __init__(self, folder: Path, *, edits: bool = True) -> None:
        self.network = MadeNetwork(folder)
        self.database = open_database(f"sqlite:///{folder / 'dim.db'}")
        self.invites = Invites(self.database)
        self.now = time.time_ns() // 1_000_000
        rosters = Rosters(self.database, self.network.id)
        rosters.keep(self.network.roster, self.now)
        self.door = Door(
            self.network.orchestrator,
            Admissions(rosters, self.network.admission if edits else None),
            self.invites,
            self.network.ca,
            now_ms=lambda: self.now,
            clock=lambda: self.now / 1000,
        )
        self.public = client_public_key(Home.at(folder / "joiner"))
        self.key = load_or_create_key(Home.at(folder / "joiner").node_key)

    @property
    def name(self) -> str:
        return ipns_name(public_bytes(self.key))

    def invited(self, **said: Any) -> orchestrator_pb2.JoinRequest:
        made = self.invites.make(
            self.network.id,
            [("192.0.2.1:1", bytes(32))],
            Admission(("node",), "ada", Limits(max_streams=4)),
            lifetime_ms=3_600_000,
            now_ms=self.now,
        )
        return self.request(invite=made.id, secret=made.secret, **said)

    def request(self, **said: Any) -> orchestrator_pb2.JoinRequest:
        key, now = said.pop("key", self.key), said.pop("now_ms", self.now)
        return join_request(key, said.pop("network", self.network.id), self.public, now_ms=now, **said)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.database.close()


async def test_the_holder_of_an_invite_is_what_it_says(world: World) -> None:
    reply = await world.door.join(world.invited(label="gpu"), "192.0.2.9")
    member = world.network.roster.member(world.name)
    assert (member.roles, member.owner, member.label, member.limits.max_streams) == (("node",), "ada", "gpu", 4)
    assert reply.roster == world.network.roster.signed and set(reply.certificates) == {"node"}
    assert world.door.outcomes == {"admitted": 1}


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (lambda world: world.request(invite="x", secret=b"y"), Forbidden),
        (lambda world: world.invited(network=ipns_name(bytes(32))), Forbidden),
        (lambda world: world.invited(now_ms=world.now + 600_000), Unauthenticated),
        (lambda world: world.invited(now_ms=world.now - 600_000), Unauthenticated),
        (lambda world: world.request(), Forbidden),
        (lambda world: _changed(world.invited(), label="another"), Unauthenticated),
        (lambda world: _changed(world.invited(), public_key=b"none"), Unauthenticated),
        (lambda world: _changed(world.invited(), key=b"short"), InputError),
    ],
    ids=["no invite", "network", "ahead", "behind", "no member", "tampered", "another's key", "short key"],
)
async def test_who_is_not_let_in_leaves_nothing(world: World, spoil: Any, error: type[Exception]) -> None:
    before = world.network.roster.version
    with pytest.raises(error):
        await world.door.join(spoil(world), "192.0.2.9")
    assert world.network.roster.version == before


def _changed(request: orchestrator_pb2.JoinRequest, **fields: Any) -> orchestrator_pb2.JoinRequest:
    for name, value in fields.items():
        setattr(request, name, value)
    return request


async def test_an_invite_that_cannot_be_honoured_is_not_used_up(world: World) -> None:
    request = world.invited()
    world.network.join("gone", "node", key=world.key)
    Rosters(world.database, world.network.id).keep(world.network.roster, world.now)
    world.network.revoke(world.name, "stolen")
    Rosters(world.database, world.network.id).keep(world.network.roster, world.now)
    with pytest.raises(Forbidden, match="stolen"):
        await world.door.join(request, "192.0.2.9")
    other = Ed25519PrivateKey.generate()
    again = world.request(invite=request.invite, secret=request.secret, key=other)
    await world.door.join(again, "192.0.2.9")
    assert world.network.roster.member(ipns_name(public_bytes(other))).roles == ("node",)


async def test_a_used_invite_brings_nobody_back_and_gives_nothing_twice(world: World) -> None:
    invited = world.invited(label="gpu")
    again = world.request(invite=invited.invite, secret=invited.secret, label="another")
    await world.door.join(invited, "192.0.2.9")
    world.network.admit(world.network.roster.member(world.name).model_copy(update={"roles": ("user",), "owner": "eve"}))
    Rosters(world.database, world.network.id).keep(world.network.roster, world.now)
    held = world.network.roster.member(world.name)
    reply = await world.door.join(again, "192.0.2.9")  # as when the first answer was lost
    assert set(reply.certificates) == {"user"} and world.network.roster.member(world.name) == held
    world.network.revoke(world.name, "stolen")
    Rosters(world.database, world.network.id).keep(world.network.roster, world.now)
    with pytest.raises(Forbidden, match="stolen"):
        await world.door.join(again, "192.0.2.9")
    fresh = world.request(invite=invited.invite, secret=invited.secret, key=Ed25519PrivateKey.generate())
    with pytest.raises(Forbidden, match="used before"):
        await world.door.join(fresh, "192.0.2.9")


async def test_a_member_gets_certificates_once_per_request(world: World) -> None:
    await world.door.join(world.invited(), "192.0.2.9")
    request = world.request()
    assert set((await world.door.join(request, "192.0.2.9")).certificates) == {"node"}
    with pytest.raises(AccessError, match="made before"):
        await world.door.join(request, "192.0.2.9")
    assert world.door.outcomes == {"admitted": 1, "renewed": 1, "unauthenticated": 1}


async def test_a_member_that_asks_without_end_keeps_no_other_from_asking(world: World) -> None:
    await world.door.join(world.invited(), "192.0.2.9")
    other = world.network.join("other", "node")
    for number in range(int(MEMBER_BURST)):
        await world.door.join(world.request(), f"192.0.2.{number}")
    with pytest.raises(QuotaExceeded, match="this member"):
        await world.door.join(world.request(), "192.0.2.99")
    key = load_or_create_key(other.home.node_key)
    assert (await world.door.join(world.request(key=key), "192.0.2.99")).certificates
    world.now += 5_000
    assert (await world.door.join(world.request(), "192.0.2.99")).certificates


async def test_only_orchestrators_have_a_server_in_the_roster_and_a_good_one(world: World, tmp_path: Path) -> None:
    home = Home.at(tmp_path / "joiner")
    good: dict[str, Any] = {
        "addresses": ["192.0.2.7:1"],
        "doors": ["192.0.2.7:2"],
        "certificate": load_or_create_server(home, world.name).certificate,
        "ca": load_or_create_ca(home, world.network.id, world.name).certificate,
    }
    await world.door.join(world.invited(), "192.0.2.9")
    with pytest.raises(Forbidden, match="no orchestrator"):
        await world.door.join(world.request(server=orchestrator_pb2.ServerEntry(**good)), "192.0.2.9")
    world.network.admit(world.network.roster.member(world.name).model_copy(update={"roles": ("orchestrator",)}))
    own = world.network.orchestrator.server().certificate
    for bad in ({"ca": b"garbage"}, {"ca": b""}, {"certificate": b"x"}, {"certificate": own}, {"doors": ["no door"]}):
        version = world.network.roster.version
        with pytest.raises((InputError, ConfigurationError)):
            await world.door.join(world.request(server=orchestrator_pb2.ServerEntry(**(good | bad))), "192.0.2.9")
        assert world.network.roster.version == version
    await world.door.join(world.request(server=orchestrator_pb2.ServerEntry(**good)), "192.0.2.9")
    member = world.network.roster.member(world.name)
    assert (member.addresses, member.doors, member.ca) == (("192.0.2.7:1",), ("192.0.2.7:2",), good["ca"])


async def test_a_door_without_the_admission_key_says_so(tmp_path: Path) -> None:
    world = World(tmp_path, edits=False)
    with pytest.raises(Forbidden, match="cannot admit"):
        await world.door.join(world.invited(), "192.0.2.9")
    other = world.network.join("other", "orchestrator", key=world.key)
    said = orchestrator_pb2.ServerEntry(addresses=["192.0.2.7:1"], certificate=other.server().certificate)
    with pytest.raises(NodeUnreachable, match="does not edit"):  # so that the caller asks at the next door
        await world.door.join(world.request(server=said), "192.0.2.9")
    held = world.network.roster.member(other.name)
    fields = {"addresses": ("192.0.2.7:1",), "certificate": said.certificate, "ca": world.network.ca.certificate}
    world.network.admit(held.model_copy(update=fields))
    said.ca = world.network.ca.certificate
    assert (await world.door.join(world.request(server=said), "192.0.2.9")).certificates  # it stands there already
    world.database.close()


async def test_a_flood_from_one_address_does_not_close_the_door_for_others(world: World) -> None:
    codes: dict[str, int] = {}
    bad = world.request(invite="x", secret=b"y")
    for _ in range(300):
        try:
            await world.door.join(bad, "192.0.2.66")
        except AccessError as error:
            codes[error.code] = codes.get(error.code, 0) + 1
    assert codes == {"forbidden": int(ADDRESS_BURST), "quota_exceeded": 300 - int(ADDRESS_BURST)}
    await world.door.join(world.invited(), "192.0.2.9")
    world.now += 60_000
    with pytest.raises(Forbidden):  # heard again, a minute later
        await world.door.join(world.request(invite="x", secret=b"y"), "192.0.2.66")
    with pytest.raises(QuotaExceeded):
        for _ in range(200):
            with pytest.raises(Forbidden):
                await world.door.join(bad, "192.0.2.66")
