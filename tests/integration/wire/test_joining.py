"""Joining at real doors on loopback, and keeping certificates: impostors, foreign rosters, doors that are down."""

from __future__ import annotations

import itertools
import random
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
from prometheus_client import CollectorRegistry

from dim_pipelines.domain.ipns import ipns_name
from dim_pipelines.domain.roster import Invite, Member, Role
from dim_pipelines.errors import (
    ConfigurationError,
    DimError,
    Forbidden,
    NodeUnreachable,
    ProtocolError,
    RecordExpired,
    RecordForged,
    Unauthenticated,
)
from dim_pipelines.identity.certificates import client_public_key, load_client, load_or_create_server
from dim_pipelines.identity.invites import format_invite
from dim_pipelines.identity.joining import (
    Nonces,
    join_network,
    keep_certificates,
    keep_server,
    refresh_certificates,
    renew_certificates,
    verify_join,
)
from dim_pipelines.identity.keys import load_or_create_key
from dim_pipelines.identity.membership import Membership
from dim_pipelines.settings import Home
from dim_pipelines.telemetry.metrics import RpcMetrics
from dim_pipelines.testing.networks import MadeNetwork, now_ms
from dim_pipelines.wire.access import Peer
from dim_pipelines.wire.server import RpcServer, SecureListener
from dim_pipelines.wire.tls import ServerTls, certificate_hash, fetch_certificate
from dim_pipelines.wire.v1 import orchestrator_pb2, orchestrator_pb2_grpc

HOUR = 3_600_000


class Door(orchestrator_pb2_grpc.OrchestratorServiceServicer):
    """Admits whoever brings the secret; `spoil` may change the answer."""

    def __init__(self, network: MadeNetwork) -> None:
        self.network, self.nonces = network, Nonces()
        self.requests: list[orchestrator_pb2.JoinRequest] = []
        self.spoil: Callable[[orchestrator_pb2.JoinReply], None] = lambda reply: None
        self.now_ms: Callable[[], int] = now_ms
        self.issued_from: Callable[[], int] = now_ms
        self.server: RpcServer

    async def Join(self, request: orchestrator_pb2.JoinRequest, context: Any) -> orchestrator_pb2.JoinReply:
        verify_join(request, self.now_ms())
        self.nonces.take(request, self.now_ms())
        self.requests.append(request)
        name = ipns_name(request.key)
        if request.invite:
            if request.secret != bytes(32):
                raise Forbidden("the invite was used")
            if name not in self.network.roster.members:
                self.network.admit(
                    Member(
                        key=request.key, roles=("node", "user"), owner="o", label=request.label, admitted_ms=now_ms()
                    )
                )
        member = self.network.roster.member(name)
        reply = orchestrator_pb2.JoinReply(
            roster=self.network.roster.signed, pages=self.network.roster.pages, swarm_key=bytes(range(32)),
            kubo_peers=["/ip4/10.0.0.1/tcp/1"],
        )  # fmt: skip
        for role in member.roles:
            peer = Peer(self.network.id, role, name)
            reply.certificates[role] = self.network.ca.issue(request.public_key, peer, self.issued_from())
        self.spoil(reply)
        return reply

    def register(self, server: grpc.aio.Server) -> Sequence[str]:
        orchestrator_pb2_grpc.add_OrchestratorServiceServicer_to_server(self, server)
        return ["dim.v1.OrchestratorService"]

    async def open(self, tls: ServerTls) -> str:
        self.server = await RpcServer.start(
            "", self.register, RpcMetrics(CollectorRegistry()), secure=SecureListener("127.0.0.1:0", tls, door=True)
        )
        return self.server.secure_address


def tls_of(membership: Membership) -> ServerTls:
    return ServerTls(membership.server(), membership.roster.client_cas, membership.guard)


@pytest.fixture
async def door(tmp_path: Path) -> AsyncIterator[Door]:
    made = Door(MadeNetwork(tmp_path / "net"))
    await made.open(tls_of(made.network.orchestrator))
    yield made
    await made.server.stop(0)


def invite(door: Door, *, doors: Sequence[str] = (), pin: bytes = b"", ends_ms: int = 0, **fields: Any) -> str:
    where = tuple(doors) or (door.server.secure_address,)
    pin = pin or certificate_hash(door.network.orchestrator.server().certificate)
    values: dict[str, Any] = {
        "network": door.network.id, "doors": where, "certificates": (pin,) * len(where), "id": "i",
        "secret": bytes(32), "roles": ("node",), "not_after_ms": ends_ms or now_ms() + HOUR,
    }  # fmt: skip
    return format_invite(Invite(**(values | fields)))


async def test_one_string_makes_a_home_a_member(door: Door, tmp_path: Path) -> None:
    home = Home.at(tmp_path / "home")
    made = await join_network(home, invite(door), label="lab", trust_publishers=False)
    again = Membership.load(home)
    assert again is not None and again.name == made.name and again.roster.version == door.network.roster.version
    assert again.roles == ("node", "user") and again.member.label == "lab" and not again.trust_publishers
    assert again.swarm_key == bytes(range(32)) and again.kubo_peers == ["/ip4/10.0.0.1/tcp/1"]
    assert again.client("node").not_after_ms > now_ms() and again.client("user")
    # It may come again with the same invite, because its first answer may have been lost.
    assert (await join_network(home, invite(door), label="lab")).name == made.name


async def test_the_doors_are_tried_in_turn(door: Door, tmp_path: Path) -> None:
    doors = ("127.0.0.1:1", f"unix:{tmp_path}/nobody", door.server.secure_address)
    made = await join_network(Home.at(tmp_path / "home"), invite(door, doors=doors), label="")
    assert made.member.roles == ("node", "user")
    with pytest.raises(NodeUnreachable, match="none of 2 doors"):
        await join_network(Home.at(tmp_path / "other"), invite(door, doors=doors[:2]), label="")


async def test_an_impostor_at_the_door_learns_nothing(door: Door, tmp_path: Path) -> None:
    """Somebody else answers at the address, with a certificate of his own for the orchestrator's name."""
    impostor = Door(door.network)
    false = load_or_create_server(Home.at(tmp_path / "false"), door.network.orchestrator.name)
    address = await impostor.open(ServerTls(false, list, door.network.orchestrator.guard))
    with pytest.raises(Unauthenticated, match="another certificate"):
        await join_network(Home.at(tmp_path / "home"), invite(door, doors=[address]), label="")
    assert not impostor.requests
    # With a true door behind it one still gets in.
    await join_network(Home.at(tmp_path / "home"), invite(door, doors=[address, door.server.secure_address]), label="")
    assert not impostor.requests and len(door.requests) == 1
    await impostor.server.stop(0)


async def test_a_refusal_is_told_and_no_other_door_is_asked(door: Door, tmp_path: Path) -> None:
    address = door.server.secure_address
    with pytest.raises(Forbidden, match="the invite was used"):
        await join_network(
            Home.at(tmp_path / "home"), invite(door, doors=[address, address], secret=bytes([9]) * 32), label=""
        )
    assert len(door.requests) == 1
    assert Membership.load(Home.at(tmp_path / "home")) is None


async def test_an_expired_invite_asks_nobody(door: Door, tmp_path: Path) -> None:
    with pytest.raises(Forbidden, match="the invite expired at"):
        await join_network(Home.at(tmp_path / "home"), invite(door, ends_ms=now_ms() - 1), label="")
    assert not door.requests


@pytest.mark.parametrize(("off", "word"), [(10, "ahead"), (-10, "behind")])
async def test_a_clock_ten_minutes_off_is_told_to_the_one_who_joins(
    door: Door, tmp_path: Path, off: int, word: str
) -> None:
    home = Home.at(tmp_path / "home")
    true = now_ms()
    door.now_ms = lambda: true
    with pytest.raises(Unauthenticated, match=f"the clock of the machine .* 600 s {word}") as caught:
        await join_network(home, invite(door), label="", now_ms=lambda: true + off * 60_000)
    assert "NTP" in caught.value.hint and Membership.load(home) is None


def foreign_roster(door: Door, folder: Path) -> Callable[[orchestrator_pb2.JoinReply], None]:
    other = MadeNetwork(folder)

    def spoil(reply: orchestrator_pb2.JoinReply) -> None:
        reply.roster = other.roster.signed
        reply.pages[:] = other.roster.pages

    return spoil


async def test_an_answer_with_another_networks_roster_is_refused_whole(door: Door, tmp_path: Path) -> None:
    home = Home.at(tmp_path / "home")
    door.spoil = foreign_roster(door, tmp_path / "foreign")
    with pytest.raises(RecordForged, match="another network"):
        await join_network(home, invite(door), label="")
    assert Membership.load(home) is None
    with pytest.raises(ConfigurationError):
        load_client(home, "node")


@pytest.mark.parametrize("what", ["missing", "another member's", "a stranger's CA", "garbage"])
async def test_an_answer_with_wrong_certificates_is_refused_whole(door: Door, tmp_path: Path, what: str) -> None:
    home = Home.at(tmp_path / "home")
    stranger = MadeNetwork(tmp_path / "stranger").ca
    name = ipns_name(load_or_create_key(home.node_key).public_key().public_bytes_raw())

    def spoil(reply: orchestrator_pb2.JoinReply) -> None:
        if what == "missing":
            del reply.certificates["user"]
        elif what == "another member's":
            peer = Peer(door.network.id, "user", door.network.orchestrator.name)
            reply.certificates["user"] = door.network.ca.issue(client_public_key(home), peer, now_ms())
        elif what == "a stranger's CA":
            peer = Peer(door.network.id, "user", name)
            reply.certificates["user"] = stranger.issue(client_public_key(home), peer, now_ms())
        else:
            reply.certificates["user"] = b"garbage"

    door.spoil = spoil
    with pytest.raises((ProtocolError, Unauthenticated)):
        await join_network(home, invite(door), label="")
    assert Membership.load(home) is None
    with pytest.raises(ConfigurationError):
        load_client(home, "node")


async def test_a_home_of_another_network_stays_in_it(door: Door, tmp_path: Path) -> None:
    other = MadeNetwork(tmp_path / "other").join("node", "node")
    with pytest.raises(ConfigurationError, match="member of another network"):
        await join_network(other.home, invite(door), label="")
    assert not door.requests


async def joined(door: Door, folder: Path, *roles: Role) -> Membership:
    """A member that knows the door by the roster."""
    entry = door.network.roster.member(door.network.orchestrator.name)
    door.network.admit(entry.model_copy(update={"doors": (door.server.secure_address,)}))
    return door.network.join("member", *(roles or ("node",)))


async def test_certificates_are_renewed_at_any_door_of_the_roster_and_bring_the_newest_roster(
    door: Door, tmp_path: Path
) -> None:
    member = await joined(door, tmp_path)
    door.network.join("later", "node")
    first = member.client("node").current()
    await renew_certificates(member, load_or_create_key(member.home.node_key), ["node"])
    assert member.client("node").current() != first
    assert member.roster.version == door.network.roster.version
    assert member.kubo_peers == ["/ip4/10.0.0.1/tcp/1"] and not door.requests[-1].invite


async def test_an_older_roster_in_the_answer_is_not_taken_and_the_certificates_are(door: Door, tmp_path: Path) -> None:
    member = await joined(door, tmp_path)
    old = door.network.roster
    door.network.join("later", "node")
    member.keep_roster(door.network.roster.signed, door.network.roster.pages, now_ms())
    version, first = member.roster.version, member.client("node").current()

    def spoil(reply: orchestrator_pb2.JoinReply) -> None:
        reply.roster = old.signed
        reply.pages[:] = old.pages

    door.spoil = spoil
    await renew_certificates(member, load_or_create_key(member.home.node_key), ["node"])
    assert member.roster.version == version and member.client("node").current() != first


async def test_a_revoked_member_gets_no_new_certificates(door: Door, tmp_path: Path) -> None:
    member = await joined(door, tmp_path)
    first = member.client("node").current()
    door.network.revoke(member.name, "it lied")
    with pytest.raises(Forbidden, match="it lied"):
        await renew_certificates(member, load_or_create_key(member.home.node_key), ["node"])
    assert member.client("node").current() == first


async def test_the_end_of_the_admission_keys_time_does_not_stop_a_network_that_runs(door: Door, tmp_path: Path) -> None:
    member = await joined(door, tmp_path)
    door.network.join("later", "node")
    later = now_ms() + 31 * 24 * HOUR
    door.now_ms = door.issued_from = lambda: later
    first = member.client("node").current()
    await renew_certificates(member, load_or_create_key(member.home.node_key), ["node"], now_ms=lambda: later)
    assert member.client("node").current() != first
    with pytest.raises(RecordExpired, match="permission to sign"):
        await join_network(
            Home.at(tmp_path / "new"), invite(door, ends_ms=later + HOUR), label="", now_ms=lambda: later
        )


class Ended(Exception):
    """The test has seen enough."""


class Time:
    """A clock that moves when somebody sleeps."""

    def __init__(self, most: int) -> None:
        self.now, self.most = now_ms(), most
        self.slept: list[float] = []

    def __call__(self) -> int:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += int(seconds * 1000) + 1
        if len(self.slept) >= self.most:
            raise Ended


async def test_certificates_are_kept_by_renewing_them_at_half_of_their_life(door: Door, tmp_path: Path) -> None:
    member = await joined(door, tmp_path, "node", "user")
    time, reports = Time(3000), list[DimError | None]()
    door.now_ms = door.issued_from = time
    renewed: list[int] = []

    def report(error: DimError | None) -> None:
        reports.append(error)
        renewed.append(time.now)

    with pytest.raises(Ended):
        await keep_certificates(
            member, load_or_create_key(member.home.node_key), report=report, now_ms=time, sleep=time.sleep,
            chance=random.Random(1),
        )  # fmt: skip
    assert reports == [None] * len(reports) and len(reports) >= 3
    gaps = [(after - before) / HOUR for before, after in itertools.pairwise(renewed)]
    assert all(10.5 <= gap <= 13.5 for gap in gaps) and len(set(gaps)) > 1, gaps
    assert max(time.slept) <= 60, "a machine that slept would be late"
    assert member.client("user").not_after_ms > time.now


async def test_a_renewal_that_fails_is_tried_again_ever_later_and_then_goes_on(
    door: Door, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    member = await joined(door, tmp_path)
    (member.home.network / "client-node.crt").unlink()  # due at once
    time, reports = Time(40), list[DimError | None]()

    def refuse(reply: orchestrator_pb2.JoinReply) -> None:
        if len(door.requests) <= 12:
            raise Forbidden("not today")

    door.spoil, door.now_ms, door.issued_from = refuse, time, time
    with pytest.raises(Ended):
        await keep_certificates(
            member, load_or_create_key(member.home.node_key), report=reports.append, now_ms=time, sleep=time.sleep
        )
    assert [type(error) for error in reports] == [Forbidden] * 12 + [type(None)]
    assert sum("not today" in record.getMessage() for record in caplog.records) == 1, "each failure was logged"
    pauses = time.slept[:12]
    assert 2.5 <= pauses[0] <= 5 and all(150 <= pause <= 300 for pause in pauses[6:])
    assert member.client("node")


async def test_who_runs_now_and_then_renews_when_it_is_time_and_manages_while_no_door_answers(
    door: Door, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    member = await joined(door, tmp_path)
    key, begin = load_or_create_key(member.home.node_key), now_ms()
    first = member.client("node").current()
    await refresh_certificates(member, key, now_ms=lambda: begin + 11 * HOUR)
    assert not door.requests and member.client("node").current() == first
    door.now_ms = lambda: begin + 13 * HOUR
    await refresh_certificates(member, key, now_ms=door.now_ms)
    second = member.client("node").current()
    assert len(door.requests) == 1 and second != first
    await door.server.stop(0)
    await refresh_certificates(member, key, now_ms=lambda: begin + 20 * HOUR)
    assert member.client("node").current() == second and "cannot be renewed" in caplog.text
    with pytest.raises(NodeUnreachable):
        await refresh_certificates(member, key, now_ms=lambda: begin + 25 * HOUR)


async def test_without_any_door_it_says_so(tmp_path: Path) -> None:
    member = MadeNetwork(tmp_path).join("alone", "node")
    with pytest.raises(NodeUnreachable, match="no door of the network is known"):
        await renew_certificates(member, load_or_create_key(member.home.node_key), ["node"])


async def test_a_server_certificate_that_ends_soon_is_replaced_while_the_server_runs(
    door: Door, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    member = door.network.orchestrator
    tls = ServerTls(member.server(), lambda: member.roster.client_cas(), member.guard)
    second = Door(door.network)
    address = await second.open(tls)
    old = member.server().certificate
    days, told = 0, list[bytes]()

    async def sleep(seconds: float) -> None:
        nonlocal days
        days += 1
        if days == 2:  # what load_or_create_server does 30 days before the end
            (member.home.network / "server.crt").unlink()
        if days == 4:
            (member.home.network / "server.crt").write_bytes(b"garbage")
        if days == 5:
            raise Ended

    with pytest.raises(Ended):
        await keep_server(member, tls, lambda fresh: told.append(fresh.certificate), sleep=sleep)
    assert len(told) == 1 and told[0] != old
    assert await fetch_certificate(address, certificate_hash(told[0])) == told[0]
    assert "cannot be renewed" in caplog.text
    await second.server.stop(0)
