"""Questions of `dim doctor` about the node daemon that runs here, this home's names, and its Kubo."""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING, Any, Final

from dim_pipelines.cli.doctor_findings import Finding, Question
from dim_pipelines.errors import ConfigurationError, NameUnresolved, NodeUnreachable

if TYPE_CHECKING:
    from dim_pipelines.settings import Home
    from dim_pipelines.wire.v1 import node_pb2

CALL_S: Final = 5.0
ROAD_LATE_MS: Final = 150_000
"""A record is sent every minute: a road that took none for longer than this is broken."""
GIB: Final = 1 << 30


class NodeVisit:
    """One question to the daemon of a home, shared by those that need its answer."""

    def __init__(self, home: Home, ipfs: str) -> None:
        """Prepare the visit; `ipfs` as of `--ipfs`."""
        self._home = home
        self._ipfs = ipfs
        self._asking: asyncio.Task[node_pb2.NodeStatus | None] | None = None

    def questions(self, member: bool) -> dict[str, Question]:
        """Give the questions by name, in the order in which they are shown; some are for members only."""
        checks: dict[str, Question] = {"daemon": self.daemon, "devices": self.devices}
        if member:
            checks |= {"reach": self.reach, "tls": self.tls, "roads": self.roads, "names": self.names}
            checks["bus"] = self.bus
        return {**checks, "kubo": self.kubo}

    async def daemon(self) -> Finding:
        """Ask whether a daemon runs here and takes work."""
        status = await self._status()
        if status is None:
            return Finding("daemon", "unknown", "no node daemon runs in this home", "dim node start")
        text = f"{status.description.name} serves: {status.sessions} sessions, {status.tasks} tasks"
        if status.controls_error:
            return Finding(
                "daemon", "warning", f"{text}; its owner's newest rules are not in force", status.controls_error
            )
        if status.closed:
            return Finding("daemon", "warning", f"{text}; it takes no new work: {status.closed}")
        return Finding("daemon", "good", text)

    async def devices(self) -> Finding:
        """Ask which devices the daemon offers."""
        status = await self._status()
        if status is None:
            return Finding("devices", "unknown", "the daemon would say")
        said = status.description
        shown = [f"{each.id} {each.name}, {each.memory_bytes / GIB:.1f} GiB" for each in said.devices]
        details = tuple(f"{engine}: {numerics}" for engine, numerics in sorted(said.numerics.items()))
        return Finding("devices", "good" if shown else "bad", "; ".join(shown) or "none", details=details)

    async def reach(self) -> Finding:
        """Ask how others reach the node."""
        status = await self._status()
        if status is None:
            return Finding("reach", "unknown", "the daemon would say")
        details = tuple(status.endpoints)
        if status.reach == "direct":
            return Finding("reach", "good", "direct: others connect to it", details=details)
        if status.reach == "attached" and status.attached_to:
            text = f"attached: it keeps a link to {len(status.attached_to)} of the orchestrators, which relay to it"
            return Finding("reach", "good", text, details=tuple(filter(None, (status.reach_reason, *details))))
        why = status.reach_reason or "no orchestrator has tried it yet"
        return Finding("reach", "bad", f"nobody reaches it: {why}", "is an orchestrator up?", details)

    async def tls(self) -> Finding:
        """Ask the node over its own secure port, as others do."""
        import grpc

        from dim_pipelines.identity.membership import Membership
        from dim_pipelines.wire.channel import open_channel
        from dim_pipelines.wire.status import from_rpc_error
        from dim_pipelines.wire.tls import PinnedPeer
        from dim_pipelines.wire.v1 import node_pb2, node_pb2_grpc

        status = await self._status()
        membership = Membership.load(self._home)
        if status is None or membership is None or not status.secure:
            return Finding("tls", "unknown", "no daemon with TLS runs here")
        host, _, port = status.secure.rpartition(":")
        local = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(host, host)
        peer = PinnedPeer(membership.name, membership.server().certificate)
        channel = open_channel(f"{local}:{port}", peer=peer, client=membership.client("node"))
        begun = time.monotonic()
        try:
            await node_pb2_grpc.NodeServiceStub(channel).DescribeNode(node_pb2.DescribeNodeRequest(), timeout=CALL_S)
        except grpc.aio.AioRpcError as error:
            found = from_rpc_error(error)
            return Finding("tls", "bad", f"its own port {status.secure} refuses it: {found.message}", found.hint)
        finally:
            await channel.close(None)
        return Finding(
            "tls", "good", f"{status.secure} answers with mutual TLS in {1000 * (time.monotonic() - begun):.0f} ms"
        )

    async def roads(self) -> Finding:
        """Ask by which roads the node's record travels."""
        status = await self._status()
        if status is None:
            return Finding("roads", "unknown", "the daemon would say")
        now_ms = time.time_ns() // 1_000_000
        lines, open_ = [], 0
        for road in status.roads:
            works = now_ms - road.last_ok_ms < ROAD_LATE_MS
            open_ += works
            when = f"{(now_ms - road.last_ok_ms) / 1000:.0f} s ago" if road.last_ok_ms else "never"
            lines.append(f"{road.name}: {when}" + (f"; {road.last_error}" if road.last_error else ""))
        text = f"{open_} of {len(status.roads)} roads took the record; one is enough"
        verdict: Any = "good" if open_ == len(status.roads) else "warning" if open_ else "bad"
        return Finding("roads", verdict, text, "" if open_ else "is an orchestrator up?", tuple(lines))

    async def names(self) -> Finding:
        """Ask this home's name service for the member's own record."""
        from dim_pipelines.discovery.open_names import open_names
        from dim_pipelines.discovery.record import verify_record
        from dim_pipelines.identity.membership import Membership

        membership = Membership.load(self._home)
        assert membership is not None
        if self._ipfs_here() == "embedded":
            return Finding("names", "unknown", "no Kubo runs here: orchestrators alone carry records")
        try:
            service = open_names(self._ipfs_here(), self._home)
        except ConfigurationError as error:
            return Finding("names", "unknown", error.message, error.hint)
        try:
            raw = await service.get(membership.name, timeout_s=CALL_S)
        except NameUnresolved:
            member = membership.roster.members.get(membership.name)
            if member is None or "node" not in member.roles:
                return Finding("names", "good", "the name service answers; this home publishes no record")
            return Finding(
                "names", "warning", "the name service has no record of this node", "the daemon puts one there"
            )
        finally:
            await service.close()
        record = verify_record(raw, membership.name)
        left_s = record.expires_ms / 1000 - time.time()
        text = f"record {record.sequence}, " + (f"valid for {left_s:.0f} s more" if left_s > 0 else "ended")
        return Finding("names", "good" if left_s > 0 else "warning", text)

    async def bus(self) -> Finding:
        """Ask this home's Kubo which hints it listens to, and whom it hears."""
        from dim_pipelines.content.kubo_repository import running_kubo

        address = running_kubo(self._home.root / "kubo")
        if address is None:
            return Finding("bus", "unknown", "no Kubo runs here: hints stay within each process")
        return await asyncio.to_thread(_look_at_bus, address, self._home)

    async def kubo(self) -> Finding:
        """Ask this home's Kubo who it is, whom it knows, and whether strangers can read it."""
        from dim_pipelines.content.kubo_repository import running_kubo

        address = running_kubo(self._home.root / "kubo")
        if address is None:
            return Finding("kubo", "unknown", "none runs for this home", "only wanted with --ipfs kubo")
        return await asyncio.to_thread(_look_at_kubo, address, self._home)

    def _ipfs_here(self) -> str:
        from dim_pipelines.content.kubo_repository import running_kubo

        return self._ipfs or ("kubo" if running_kubo(self._home.root / "kubo") else "embedded")

    async def _status(self) -> node_pb2.NodeStatus | None:
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask())
        return await asyncio.shield(self._asking)

    async def _ask(self) -> node_pb2.NodeStatus | None:
        import grpc

        from dim_pipelines.wire.channel import open_channel
        from dim_pipelines.wire.status import from_rpc_error
        from dim_pipelines.wire.v1 import node_pb2, node_pb2_grpc

        try:
            address = json.loads((self._home.node / "node.json").read_text(encoding="utf-8"))["address"]
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigurationError(f"{self._home.node / 'node.json'} cannot be read: {error}") from error
        channel = open_channel(address)
        try:
            return await node_pb2_grpc.NodeServiceStub(channel).GetStatus(node_pb2.GetStatusRequest(), timeout=CALL_S)
        except grpc.aio.AioRpcError as error:
            found = from_rpc_error(error)
            if isinstance(found, NodeUnreachable):
                raise NodeUnreachable(
                    f"the daemon that announced itself at {address} does not answer",
                    hint="was it killed? dim node start",
                ) from error
            raise found from error
        finally:
            await channel.close(None)


def _look_at_bus(address: str, home: Home) -> Finding:
    from dim_pipelines.content.kubo_address import find_secret
    from dim_pipelines.content.kubo_rpc import KuboRpc

    rpc = KuboRpc(address, CALL_S, find_secret(address, home))
    try:
        [topics] = rpc.json("/pubsub/ls")
        [heard] = rpc.json("/pubsub/peers")
    finally:
        rpc.close()
    listened, peers = len(topics.get("Strings") or []), len(heard.get("Strings") or [])
    text = f"pubsub listens to {listened} topics and hears {peers} peers"
    if not listened:
        return Finding("bus", "warning", text, "the orchestrator or node here was started without --ipfs kubo")
    return Finding("bus", "good" if peers else "warning", text)


def _look_at_kubo(address: str, home: Home) -> Finding:
    from dim_pipelines.content.kubo_address import find_secret
    from dim_pipelines.content.kubo_privacy import is_private
    from dim_pipelines.content.kubo_rpc import KuboRpc

    rpc = KuboRpc(address, CALL_S, find_secret(address, home))
    try:
        [me] = rpc.json("/id")
        [version] = rpc.json("/version")
        [swarm] = rpc.json("/swarm/peers")
        private = is_private(rpc, str(me["ID"]))
    finally:
        rpc.close()
    peers = len(swarm.get("Peers") or [])
    text = f"Kubo {version['Version']} at {address}, {peers} peers"
    if not private:
        return Finding("kubo", "bad", f"{text}; strangers may read what is added", "see docs/decisions/0008")
    return Finding(
        "kubo", "good" if peers else "warning", text, "" if peers else "no other Kubo of the network is connected"
    )
