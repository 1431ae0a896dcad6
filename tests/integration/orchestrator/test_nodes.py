"""Nodes at an orchestrator: announced, probed, watched, lost, attached, and with two orchestrators."""

from __future__ import annotations

import asyncio
import os
import resource
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from dim_pipelines.domain.ipns import ipns_name
from dim_pipelines.errors import RecordForged
from dim_pipelines.identity.keys import load_or_create_key
from dim_pipelines.orchestrator.founding import found
from dim_pipelines.orchestrator.service import OrchestratorServicer
from dim_pipelines.settings import Home
from dim_pipelines.wire.status import from_rpc_error
from dim_pipelines.wire.v1 import link_pb2, link_pb2_grpc, orchestrator_pb2, orchestrator_pb2_grpc


def now_ms() -> int:
    return time.time_ns() // 1_000_000


async def test_an_announced_node_is_probed_and_eligible_lost_when_it_ends_and_back_again(
    orchestrator: Any, node: Any, wait_for_state: Callable[..., Any]
) -> None:
    async with orchestrator.stub(node.member) as stub:
        watching = stub.WatchNodes(orchestrator_pb2.WatchNodesRequest())
        reply = await stub.Announce(node.announcement(), timeout=30)
        assert reply.state == "VERIFIED" and reply.reason
        row = await wait_for_state(orchestrator.table, node.member.name, "ELIGIBLE")
        assert (row.label, row.owner, row.reach, row.relay) == ("gpu", "ada", "direct", None)
        seen = []
        async with asyncio.timeout(60):
            while not seen or seen[-1].state != "ELIGIBLE":
                seen.append(await watching.read())
        assert seen[-1].record == row.raw and seen[-1].label == "gpu"
        again = await stub.Announce(orchestrator_pb2.AnnounceRequest(name=row.name, record=row.raw), timeout=30)
        assert again.state == "ELIGIBLE"

        await node.stop()
        lost = await wait_for_state(orchestrator.table, node.member.name, "SUSPECT")
        assert "does not answer health checks" in lost.reason
        await node.start()
        await wait_for_state(orchestrator.table, node.member.name, "ELIGIBLE")
        states = [each.state for each in (await stub.ListNodes(orchestrator_pb2.ListNodesRequest(), timeout=30)).nodes]
        assert states == ["ELIGIBLE"]


async def test_somebody_else_at_a_nodes_address_is_not_the_node(
    orchestrator: Any, node: Any, make_node: Callable[..., Any], tmp_path: Path, wait_until: Callable[..., Any]
) -> None:
    other = make_node(await orchestrator.join(tmp_path / "other", "node"))
    other.address = node.address  # its record says where another node listens
    async with orchestrator.stub(other.member) as stub:
        await stub.Announce(other.announcement(), timeout=30)

    def reason() -> str:
        row = orchestrator.table.row(other.member.name)
        return row.reason if row is not None and row.state == "VERIFIED" else ""

    await wait_until(lambda: "does not answer health checks" in reason())


async def test_who_may_announce_and_ask_what(
    orchestrator: Any, node: Any, make_node: Callable[..., Any], tmp_path: Path
) -> None:
    user = await orchestrator.join(tmp_path / "ada", "user")
    other = make_node(await orchestrator.join(tmp_path / "other", "node"))
    async with orchestrator.stub(node.member) as stub:
        with pytest.raises(grpc.aio.AioRpcError, match="its own record") as refused:
            await stub.Announce(other.announcement(), timeout=30)
        assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
        with pytest.raises(grpc.aio.AioRpcError) as forged:
            request = node.announcement(network=ipns_name(bytes(32)))
            await stub.Announce(request, timeout=30)
        assert isinstance(from_rpc_error(forged.value), RecordForged)
        with pytest.raises(grpc.aio.AioRpcError, match="of itself"):
            await stub.GetNode(orchestrator_pb2.GetNodeRequest(name=other.member.name), timeout=30)
        orchestrator.table.keep_refusals("batch-1", {node.member.name: ["no GPU"]}, ())
        said = await stub.GetNode(orchestrator_pb2.GetNodeRequest(name=node.member.name), timeout=30)
        assert said.node.state == "SEEN" and "another network" in said.node.reason
        assert [(each.batch, list(each.reasons)) for each in said.refusals] == [("batch-1", ["no GPU"])]
        probed = await stub.ProbeReach(
            orchestrator_pb2.ProbeReachRequest(
                endpoints=[node.address, "127.0.0.1:1"], certificate=node.member.server().certificate
            ),
            timeout=30,
        )
        assert list(probed.reachable) == [node.address] and probed.observed == "127.0.0.1" and probed.reason
    async with orchestrator.stub(user, "user") as stub:
        with pytest.raises(grpc.aio.AioRpcError, match="user"):
            await stub.Announce(node.announcement(), timeout=30)
        unknown = await stub.GetNode(orchestrator_pb2.GetNodeRequest(name=other.member.name), timeout=30)
        assert not unknown.HasField("node") and unknown.now_ms


async def test_a_flood_of_bogus_announcements_is_bounded_and_others_are_heard(
    orchestrator: Any,
    node: Any,
    make_node: Callable[..., Any],
    tmp_path: Path,
    wait_for_state: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As fast as they go over the wire, 500 at a time; 10,000 without the wire: tests/unit/discovery/test_resolver."""
    monkeypatch.setattr("dim_pipelines.orchestrator.service.TARPIT_S", 0.2)  # for the sake of the test's time
    flooder = make_node(await orchestrator.join(tmp_path / "flooder", "node"))
    bogus = orchestrator_pb2.AnnounceRequest(name=flooder.member.name, record=os.urandom(9000))
    codes: dict[str, int] = {}
    began = time.monotonic()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    async with orchestrator.stub(flooder.member) as flooding, orchestrator.stub(node.member) as stub:

        async def flood() -> None:
            for _ in range(4):
                try:
                    await flooding.Announce(bogus, timeout=100)
                except grpc.aio.AioRpcError as error:
                    code = from_rpc_error(error).code
                    codes[code] = codes.get(code, 0) + 1

        floods = [asyncio.create_task(flood()) for _ in range(500)]
        await asyncio.sleep(0)
        await stub.Announce(node.announcement(), timeout=60)
        await wait_for_state(orchestrator.table, node.member.name, "ELIGIBLE")
        await asyncio.gather(*floods)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"a flood of 2,000 bogus announcements: {codes}, memory grew by {grown:.0f} MB")
    assert sum(codes.values()) == 2_000
    assert codes["record_forged"] <= 50 + 5 * (time.monotonic() - began)  # what the flooder's rate allows
    assert grown < 200
    assert [row.label for row in orchestrator.table.rows(["ELIGIBLE"])] == ["gpu"]


async def test_a_roster_travels_as_the_pages_that_changed(orchestrator: Any, node: Any, tmp_path: Path) -> None:
    async with orchestrator.stub(node.member) as stub:
        first = await stub.WatchRoster(orchestrator_pb2.WatchRosterRequest()).read()
        assert first.pages
        version = orchestrator.membership.roster.version
        watching = stub.WatchRoster(orchestrator_pb2.WatchRosterRequest(version=version, follow=True))
        await watching.initial_metadata()
        await orchestrator.join(tmp_path / "another", "node")
        async with asyncio.timeout(60):
            update = await watching.read()
        assert node.member.keep_roster(update.roster, list(update.pages), now_ms())
        assert node.member.roster.version == version + 1
        once = stub.WatchRoster(orchestrator_pb2.WatchRosterRequest(version=version + 1))
        assert await once.read() is grpc.aio.EOF  # who has it is sent nothing


async def test_what_an_orchestrator_counts_is_shown(
    tmp_path: Path, run_orchestrator: Callable[..., Any], make_node: Callable[..., Any]
) -> None:
    home = Home.at(tmp_path / "orchestrator")
    await asyncio.to_thread(found, home, "first", "operator", now_ms())
    async with run_orchestrator(home, metrics_port=0) as one:
        node = make_node(await one.join(tmp_path / "gpu", "node"))
        async with one.stub(node.member) as stub:
            await stub.Announce(node.announcement(), timeout=30)
            with pytest.raises(grpc.aio.AioRpcError):
                await stub.Announce(node.announcement(at_ms=1), timeout=30)

        def read() -> str:
            with urllib.request.urlopen(one.address.metrics, timeout=30) as response:
                return str(response.read().decode())

        shown = await asyncio.to_thread(read)
    one.database.close()
    for line in (
        'dim_orchestrator_records_total{outcome="new",road="announce"} 1.0',
        'dim_orchestrator_records_total{outcome="record_expired",road="announce"} 1.0',
        'dim_orchestrator_joins_total{outcome="admitted"} 1.0',
        'dim_orchestrator_nodes{state="VERIFIED"} 1.0',
        'dim_orchestrator_nodes{state="GONE"} 0.0',
    ):
        assert line in shown


async def test_streams_of_one_member_are_capped(orchestrator: Any, node: Any) -> None:
    async with orchestrator.stub(node.member) as stub:
        calls = [stub.WatchNodes(orchestrator_pb2.WatchNodesRequest()) for _ in range(16)]
        for call in calls:
            await call.initial_metadata()
        one_more = stub.WatchNodes(orchestrator_pb2.WatchNodesRequest())
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await one_more.read()
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        for call in calls:
            call.cancel()


async def test_an_attached_node_is_as_alive_as_its_link(
    orchestrator: Any, node: Any, wait_for_state: Callable[..., Any]
) -> None:
    own = orchestrator.address.name
    async with orchestrator.channel(node.member) as channel:
        stub: Any = orchestrator_pb2_grpc.OrchestratorServiceStub(channel)
        await stub.Announce(node.announcement(reach="attached", endpoints=(), attached_to=(own,)), timeout=30)
        leave = asyncio.Event()

        async def messages() -> Any:
            yield link_pb2.AttachMessage(hello=link_pb2.Hello(name=node.member.name, boot=node.boot))
            while not leave.is_set():
                yield link_pb2.AttachMessage(pulse=link_pb2.Pulse())
                await asyncio.sleep(0.5)

        links: Any = link_pb2_grpc.LinkServiceStub(channel)
        attached = links.Attach(messages())
        assert (await attached.read()).WhichOneof("event") == "attached"
        row = await wait_for_state(orchestrator.table, node.member.name, "ELIGIBLE")
        assert (row.reach, row.relay) == ("attached", own)
        leave.set()
        attached.cancel()
        lost = await wait_for_state(orchestrator.table, node.member.name, "SUSPECT")
        assert "attached to no orchestrator" in lost.reason


async def test_an_orchestrator_that_comes_back_is_where_it_was_and_knows_what_it_knew(
    tmp_path: Path,
    run_orchestrator: Callable[..., Any],
    make_node: Callable[..., Any],
    wait_for_state: Callable[..., Any],
) -> None:
    home = Home.at(tmp_path / "orchestrator")
    await asyncio.to_thread(found, home, "first", "operator", now_ms())
    async with run_orchestrator(home) as before:
        node = make_node(await before.join(tmp_path / "gpu", "node"))
        await node.start()
        async with before.stub(node.member) as stub:
            await stub.Announce(node.announcement(), timeout=30)
            await wait_for_state(before.table, node.member.name, "ELIGIBLE")
            mark = before.table.mark(node.member.name)
            version = before.membership.roster.version
    try:
        async with run_orchestrator(home) as again:
            assert (again.address.address, again.address.door) == (before.address.address, before.address.door)
            assert again.membership.roster.version == version  # the roster said all that already
            assert again.table.mark(node.member.name) == mark
            row = again.table.row(node.member.name)
            assert row is not None and row.state == "ELIGIBLE"
            async with again.stub(node.member) as stub:
                with pytest.raises(grpc.aio.AioRpcError, match="accepted before"):
                    await stub.Announce(node.announcement(at_ms=row.sequence - 1), timeout=30)
        again.database.close()
    finally:
        await node.stop()


async def test_any_one_of_two_orchestrators_is_enough(
    orchestrator: Any,
    node: Any,
    run_orchestrator: Callable[..., Any],
    tmp_path: Path,
    wait_for_state: Callable[..., Any],
    wait_until: Callable[..., Any],
) -> None:
    second_home = Home.at(tmp_path / "second")
    key = load_or_create_key(second_home.user_key)
    await orchestrator.join(second_home.root, "orchestrator", "run_host", key=key)
    async with run_orchestrator(second_home) as second:
        # The first has entered the second's server in the roster, so that its certificates are honoured everywhere.
        listed = {each.label for each in orchestrator.membership.orchestrators()}
        assert listed == {"first", "second"}
        view = second.membership.roster
        assert node.member.keep_roster(view.signed, view.pages, now_ms())  # as a node that follows it has
        async with orchestrator.stub(node.member) as stub:
            await stub.Announce(node.announcement(), timeout=30)
        for one in (orchestrator, second):  # what was told to one reaches the other, as the same bytes
            await wait_for_state(one.table, node.member.name, "ELIGIBLE")
        assert second.table.mark(node.member.name) == orchestrator.table.mark(node.member.name)
        # A member that the first admits is let in by the second.
        late = await orchestrator.join(tmp_path / "late", "node")
        await wait_until(lambda: second.membership.roster.version >= late.roster.version)
        async with second.stub(late) as stub:
            peers = await stub.ListPeers(orchestrator_pb2.ListPeersRequest(), timeout=30)
        assert {peer.label for peer in peers.peers} == listed
    second.database.close()


async def test_a_node_that_is_reached_directly_may_leave_its_orchestrator(
    orchestrator: Any,
    node: Any,
    monkeypatch: pytest.MonkeyPatch,
    wait_for_state: Callable[..., Any],
    wait_until: Callable[..., Any],
) -> None:
    """As when it was attached before: neither is it lost, nor does it count as one that comes and goes."""
    noted: list[str] = []
    monkeypatch.setattr(OrchestratorServicer, "node_changed", lambda self, name: noted.append(name))
    async with orchestrator.channel(node.member) as channel:
        stub = orchestrator_pb2_grpc.OrchestratorServiceStub(channel)
        await stub.Announce(node.announcement(), timeout=30)
        await wait_for_state(orchestrator.table, node.member.name, "ELIGIBLE")
        before = len(noted)

        def row() -> Any:
            return orchestrator.table.row(node.member.name)

        attached = link_pb2_grpc.LinkServiceStub(channel).Attach()
        hello = link_pb2.Hello(name=node.member.name, boot=node.boot)
        await attached.write(link_pb2.AttachMessage(hello=hello))
        await wait_until(lambda: row().relay == orchestrator.address.name and len(noted) > before)
        before = len(noted)
        attached.cancel()
        await wait_until(lambda: len(noted) > before)
        assert (row().state, row().status.penalty) == ("ELIGIBLE", 0)
