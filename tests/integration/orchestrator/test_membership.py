"""Getting into a network and out of it, with real gRPC and TLS."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from dim_pipelines.domain.ipns import ipns_name
from dim_pipelines.errors import ConfigurationError, DimError, Forbidden, InputError, Unauthenticated
from dim_pipelines.identity import joining
from dim_pipelines.identity.joining import join_network, renew_certificates
from dim_pipelines.identity.keys import load_or_create_key, public_bytes
from dim_pipelines.identity.membership import Membership
from dim_pipelines.orchestrator.door import keep
from dim_pipelines.orchestrator.founding import adopt, found, open_editor
from dim_pipelines.orchestrator.meeting_point import find_orchestrator
from dim_pipelines.settings import Home
from dim_pipelines.wire.v1 import orchestrator_pb2


def now_ms() -> int:
    return time.time_ns() // 1_000_000


async def test_an_invite_makes_a_member_with_all_that_it_needs(orchestrator: Any, tmp_path: Path) -> None:
    member = await orchestrator.join(tmp_path / "gpu", "node")
    assert member.network == orchestrator.address.network
    assert member.name == ipns_name(public_bytes(load_or_create_key(member.home.node_key)))
    assert (member.member.roles, member.member.owner, member.member.label) == (("node",), "ada", "gpu")
    assert len(member.swarm_key) == 32 and member.swarm_key == orchestrator.membership.swarm_key
    async with orchestrator.stub(member) as stub:
        peers = await stub.ListPeers(orchestrator_pb2.ListPeersRequest(), timeout=30)
    assert [(peer.name, list(peer.addresses)) for peer in peers.peers] == [
        (orchestrator.address.name, [orchestrator.address.address])
    ]
    assert find_orchestrator(orchestrator.home) == orchestrator.address


async def test_a_new_server_certificate_is_shown_and_stands_in_the_roster(
    run_orchestrator: Callable[..., Any],
    wait_until: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(joining, "_DAY_S", 0.05)
    home = Home.at(tmp_path / "orchestrator")
    await asyncio.to_thread(found, home, "first", "operator", now_ms())
    async with run_orchestrator(home) as one:
        member = await one.join(tmp_path / "gpu", "node")
        first = one.membership.member.certificate
        (home.network / "server.crt").unlink()  # as if its end were near
        await wait_until(lambda: one.membership.member.certificate != first)
        async with one.stub(member) as stub:  # pins what the roster says now
            await stub.ListPeers(orchestrator_pb2.ListPeersRequest(), timeout=30)
        await one.join(tmp_path / "late", "node")  # as the door shows it, too
    one.database.close()


async def test_an_invite_admits_one_member(orchestrator: Any, tmp_path: Path) -> None:
    invite = orchestrator.invite()
    first = await join_network(Home.at(tmp_path / "a"), invite, label="a")
    with pytest.raises(Forbidden, match="used before"):
        await join_network(Home.at(tmp_path / "b"), invite, label="b")
    assert not (tmp_path / "b" / "network" / "network.json").exists()
    again = await join_network(Home.at(tmp_path / "a"), invite, label="a")  # as after a lost answer
    assert again.name == first.name
    assert len(orchestrator.membership.roster.with_role("node")) == 1


async def test_an_invite_that_has_ended_or_was_cut_short_is_refused_by_name(orchestrator: Any, tmp_path: Path) -> None:
    ended = orchestrator.invite(lifetime_ms=1000, at_ms=1_700_000_000_000)
    with pytest.raises(Forbidden, match="expired"):
        await join_network(Home.at(tmp_path / "a"), ended, label="a")
    # A clock that is behind does not see that it has ended; the door does.
    with pytest.raises(DimError) as caught:
        await join_network(Home.at(tmp_path / "a"), ended, label="a", now_ms=lambda: 1_700_000_000_000)
    assert isinstance(caught.value, Unauthenticated | Forbidden)
    whole = orchestrator.invite()
    with pytest.raises(InputError, match="cut short"):
        await join_network(Home.at(tmp_path / "a"), whole[:-5], label="a")


@pytest.mark.parametrize("minutes", [-10, 10])
async def test_a_clock_that_is_10_minutes_off_is_told_so(orchestrator: Any, tmp_path: Path, minutes: int) -> None:
    invite = orchestrator.invite()
    with pytest.raises(Unauthenticated, match="clock") as caught:
        await join_network(
            Home.at(tmp_path / "a"),
            invite,
            label="a",
            now_ms=lambda: now_ms() + minutes * 60_000 + (1000 if minutes > 0 else -1000),
        )
    assert "ahead" in caught.value.message or "behind" in caught.value.message
    await join_network(Home.at(tmp_path / "a"), invite, label="a")  # the invite was not used up


async def test_a_door_of_another_network_does_not_let_in(
    orchestrator: Any, run_orchestrator: Callable[..., Any], tmp_path: Path
) -> None:
    home = Home.at(tmp_path / "other")
    await asyncio.to_thread(found, home, "other", "operator", now_ms())
    async with run_orchestrator(home) as other:
        member = await other.join(tmp_path / "gpu", "node")
        with pytest.raises(ConfigurationError, match="another network"):
            await orchestrator.join(tmp_path / "gpu", "node")
        # Neither the certificate nor the door of one network is worth anything in the other.
        async with orchestrator.stub(member) as stub:
            with pytest.raises(grpc.aio.AioRpcError):
                await stub.ListPeers(orchestrator_pb2.ListPeersRequest(), timeout=10)
    other.database.close()


async def test_certificates_are_renewed_at_the_door_and_not_for_the_revoked(
    orchestrator: Any, tmp_path: Path, wait_until: Callable[..., Any]
) -> None:
    member = await orchestrator.join(tmp_path / "gpu", "node")
    key = load_or_create_key(member.home.node_key)
    before = member.client("node").current()
    await renew_certificates(member, key, ["node"])
    assert member.client("node").current() != before

    async with orchestrator.stub(member) as stub:
        rosters = stub.WatchRoster(orchestrator_pb2.WatchRosterRequest(version=0, follow=True))
        assert (await rosters.read()).roster
        editor = open_editor(orchestrator.home, now_ms())
        now = now_ms()
        view = editor.admissions.revoke(editor.membership.roster, member.name, "stolen", now)
        keep(editor.membership, view, now)  # another process of the home: the daemon finds out by itself
        with pytest.raises(grpc.aio.AioRpcError, match="stolen") as cut:
            async with asyncio.timeout(60):
                while await rosters.read() is not grpc.aio.EOF:
                    pass
        assert cut.value.code() is grpc.StatusCode.PERMISSION_DENIED
        with pytest.raises(grpc.aio.AioRpcError, match="stolen"):
            await stub.ListPeers(orchestrator_pb2.ListPeersRequest(), timeout=30)
    with pytest.raises(Forbidden, match="stolen"):
        await renew_certificates(member, key, ["node"])


async def test_own_nodes_are_members_without_an_invite(orchestrator: Any, tmp_path: Path) -> None:
    homes = [(tmp_path / "one", "node-1"), (tmp_path / "two", "node-2")]
    for _ in range(2):  # dim up, and dim up again
        await asyncio.to_thread(adopt, orchestrator.home, homes, now_ms())
    view = orchestrator.membership.roster
    assert sorted(member.label for member in view.with_role("node")) == ["node-1", "node-2"]
    member = Membership.load(Home.at(tmp_path / "one"))
    assert member is not None and member.doors and member.swarm_key
    async with orchestrator.stub(member) as stub, asyncio.timeout(60):
        while True:
            try:
                reply = await stub.WatchRoster(orchestrator_pb2.WatchRosterRequest()).read()
            except grpc.aio.AioRpcError as error:
                assert "no member" in str(error.details())  # the daemon has not looked yet
                await asyncio.sleep(0.1)
                continue
            break
    assert reply.roster == member.roster.signed


async def test_a_home_is_in_one_network_and_runs_one_orchestrator(
    orchestrator: Any, run_orchestrator: Callable[..., Any], tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match="in a network already"):
        await asyncio.to_thread(found, orchestrator.home, "x", "x", now_ms())
    with pytest.raises(ConfigurationError, match="runs in"):
        async with run_orchestrator(orchestrator.home):
            pass
    with pytest.raises(ConfigurationError, match="in no network"):
        async with run_orchestrator(Home.at(tmp_path / "empty")):
            pass
    node = await orchestrator.join(tmp_path / "gpu", "node")
    with pytest.raises(ConfigurationError, match="not as an orchestrator"):
        async with run_orchestrator(node.home):
            pass
