"""The orchestrator: put together, started, ended.

`serve` is its whole life: hold the home, listen, see that the roster says where, give itself certificates, and then
resolve, probe, relay and follow the others until a signal comes.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from typing import Any, Final

import grpc
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from prometheus_client import CollectorRegistry

from dim_pipelines.bus.bus import Bus
from dim_pipelines.bus.open_bus import open_bus
from dim_pipelines.content.open import open_store
from dim_pipelines.database.engine import Database, open_database
from dim_pipelines.discovery.names import NameService
from dim_pipelines.discovery.node_states import Attached, Detached
from dim_pipelines.discovery.node_table import NodeTable
from dim_pipelines.discovery.open_names import open_names
from dim_pipelines.discovery.resolver import Resolver
from dim_pipelines.domain.ipns import ipns_name
from dim_pipelines.domain.roster import Limits, Member
from dim_pipelines.errors import ConfigurationError, ContentUnavailable, DimError, Forbidden
from dim_pipelines.identity.certificates import Ca, ServerIdentity, client_public_key, load_or_create_ca, store_client
from dim_pipelines.identity.joining import keep_certificates, keep_server, renew_certificates
from dim_pipelines.identity.keys import load_or_create_key, public_bytes
from dim_pipelines.identity.membership import Membership
from dim_pipelines.orchestrator.addresses import advertised, remembered
from dim_pipelines.orchestrator.admissions import Admissions, admission_key_path, load_key, root_key_path
from dim_pipelines.orchestrator.dialback import DialBack
from dim_pipelines.orchestrator.door import Door, keep
from dim_pipelines.orchestrator.founding import keep_root_record
from dim_pipelines.orchestrator.invites import Invites
from dim_pipelines.orchestrator.link import LinkServicer
from dim_pipelines.orchestrator.meeting_point import LOCK_FILE, ORCHESTRATOR_FILE, OrchestratorAddress
from dim_pipelines.orchestrator.peers import Peers
from dim_pipelines.orchestrator.prober import Prober
from dim_pipelines.orchestrator.roster_roads import RosterRoads
from dim_pipelines.orchestrator.rosters import Rosters
from dim_pipelines.orchestrator.service import OrchestratorServicer
from dim_pipelines.settings import Home
from dim_pipelines.telemetry.metrics import LinkMetrics, MetricsServer, OrchestratorMetrics, RpcMetrics
from dim_pipelines.wire.access import Peer
from dim_pipelines.wire.callers import peer_of
from dim_pipelines.wire.lifetime import Stop, announced, locked, stopping_by_signal
from dim_pipelines.wire.server import RpcServer, SecureListener
from dim_pipelines.wire.tls import ServerTls
from dim_pipelines.wire.v1 import orchestrator_pb2, orchestrator_pb2_grpc

__all__ = ["Orchestrator", "OrchestratorAddress", "OrchestratorConfig", "member_key", "serve"]

log = logging.getLogger(__name__)

ROSTER_LOOK_S: Final = 0.25
"""How often SQL is asked whether another process of the network's editors has made a newer roster."""
RENEW_DAYS: Final = 10
"""The permission to sign rosters is renewed this long before its end where the root key lies in the home."""
_DAY_MS: Final = 86_400_000
_CHORES_S: Final = 60.0
_AGAIN_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class OrchestratorConfig:
    """How to run an orchestrator.

    Attributes:
        home: its home, a member of the network in the role orchestrator.
        listen: `HOST:PORT` for members; port 0 takes the one it had, else a free one.
        door: `HOST:PORT` for those who want to become members.
        ipfs: where names and hints go: `embedded`, or the address of a Kubo.
        public: allow a Kubo that is not shown to be private.
        advertise: `HOST` or `HOST:PORT` at which others find it, where that is not `listen`.
        metrics_port: port of `/metrics` on 127.0.0.1, 0 for a free one; None: not served.
        parent: a descriptor that ends when the parent process does; the orchestrator ends then, too.
    """

    home: Home
    listen: str = "127.0.0.1:0"
    door: str = "127.0.0.1:0"
    ipfs: str = "embedded"
    public: bool = False
    advertise: tuple[str, ...] = ()
    metrics_port: int | None = None
    parent: int | None = None


async def serve(config: OrchestratorConfig, *, ready: Callable[[OrchestratorAddress], None]) -> None:
    """Run an orchestrator until SIGTERM or SIGINT; a second signal ends the process at once.

    Args:
        config: how.
        ready: called once when it serves, the roster names it, and `orchestrator.json` is written.

    Raises:
        ConfigurationError: the home is in no network, or no orchestrator of it; an address is in use.
        DimError: it has to be entered in the roster by another orchestrator, and none does so.
    """
    with stopping_by_signal(config.parent) as stopping, stopping.starting():
        async with AsyncExitStack() as stack:
            stack.enter_context(locked(config.home.network, LOCK_FILE, "an orchestrator"))
            orchestrator = await Orchestrator.open(config, stack)
            address = await orchestrator.start()
            stack.enter_context(announced(config.home.network / ORCHESTRATOR_FILE, asdict(address)))
            stopping.started()
            ready(address)
            await orchestrator.run_until(stopping)


class Orchestrator:
    """An orchestrator's parts, opened by `serve`."""

    def __init__(
        self,
        config: OrchestratorConfig,
        stack: AsyncExitStack,
        membership: Membership,
        key: Ed25519PrivateKey,
        database: Database,
        names: NameService,
        bus: Bus,
    ) -> None:
        """Use `open`."""
        self.config, self.membership, self._stack, self._key = config, membership, stack, key
        self.table = NodeTable(database)
        self._rosters = Rosters(database, membership.network)
        self._admissions = Admissions(self._rosters, load_key(admission_key_path(config.home)))
        self._ca: Ca = load_or_create_ca(config.home, membership.network, membership.name)
        self._invites = Invites(database)
        self.resolver = Resolver(self.table, membership, names, bus)
        self._names, self._bus = names, bus
        self._registry = CollectorRegistry()
        self._links = LinkServicer(
            peer_of,
            self._limits,
            LinkMetrics(self._registry),
            on_attached=self._link_changed,
            on_detached=self._link_changed,
        )
        self._door = Door(membership, self._admissions, self._invites, self._ca)
        self._service = OrchestratorServicer(
            membership, self.table, self.resolver, self._door, DialBack(time.monotonic)
        )
        OrchestratorMetrics(
            self._registry,
            records=lambda: self.resolver.outcomes,
            joins=lambda: self._door.outcomes,
            nodes=self.table.count_states,
            roster_version=lambda: membership.roster.version,
        )
        self._server_entry: orchestrator_pb2.ServerEntry | None = None
        self._tls: ServerTls | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._prober: Prober | None = None
        self._noting = asyncio.Lock()

    @classmethod
    async def open(cls, config: OrchestratorConfig, stack: AsyncExitStack) -> Orchestrator:
        """Open what an orchestrator needs of its home.

        Raises:
            ConfigurationError: the home is in no network, or no orchestrator of it.
        """
        home = config.home
        membership = Membership.load(home)
        if membership is None:
            raise ConfigurationError(
                "this home is in no network", hint="make one: dim network init; or join one: dim network join INVITE"
            )
        key = member_key(home, membership)
        database = await asyncio.to_thread(open_database, home.database_url)
        rosters = Rosters(database, membership.network)
        await asyncio.to_thread(_agree, rosters, membership)
        if "orchestrator" not in membership.member.roles:
            raise ConfigurationError(
                f"this home is in the network as {', '.join(membership.member.roles)}, not as an orchestrator",
                hint="ask for an invite: dim network invite --role orchestrator",
            )
        names = open_names(config.ipfs, home)
        stack.push_async_callback(names.close)
        bus = open_bus(config.ipfs, home, membership.network, key)
        stack.push_async_callback(bus.close)
        try:
            await (await open_store(config.ipfs, home, public=config.public)).close()
        except ContentUnavailable as error:  # what is known lasts, and two roads of records are left
            log.warning("going on without IPFS for now: %s", error.message)
        return cls(config, stack, membership, key, database, names, bus)

    async def start(self) -> OrchestratorAddress:
        """Listen, be entered in the roster, and have certificates.

        Raises:
            DimError: see `serve`.
        """
        config, membership = self.config, self.membership
        server = membership.server()
        tls = ServerTls(server, lambda: membership.roster.client_cas(), membership.guard)
        metrics = RpcMetrics(self._registry)
        known = membership.member
        main = await RpcServer.start(
            "",
            self._register,
            metrics,
            secure=SecureListener(remembered(config.listen, known.addresses), tls),
        )
        self._stack.push_async_callback(main.stop, 0.5)
        for part in (self._links, self._service):  # before the server stops, so that nodes turn elsewhere at once
            self._stack.callback(part.close)
        door = await RpcServer.start(
            "",
            self._register_door,
            metrics,
            secure=SecureListener(remembered(config.door, known.doors), tls, door=True),
        )
        self._stack.push_async_callback(door.stop, 0.5)
        self._server_entry = orchestrator_pb2.ServerEntry(
            addresses=advertised(main.secure_address, config.advertise),
            doors=advertised(door.secure_address, [_host(each) for each in config.advertise]),
            certificate=server.certificate,
            ca=self._ca.certificate,
        )
        self._tls = tls
        await self._enter()
        shown = ""
        if config.metrics_port is not None:
            exporter = MetricsServer(self._registry, config.metrics_port)
            self._stack.push_async_callback(asyncio.to_thread, exporter.close)
            shown = exporter.address
        return OrchestratorAddress(
            os.getpid(),
            membership.name,
            membership.network,
            self._server_entry.addresses[0],
            self._server_entry.doors[0],
            shown,
        )

    async def run_until(self, stopping: Stop) -> None:
        """Work until it is to end."""
        membership = self.membership
        client = membership.client("orchestrator")
        peers = Peers(membership, client, self.resolver)
        self._prober = Prober(
            self.table,
            membership.name,
            client,
            lambda: self._links.attached,
            peers,
            changed=self._service.node_changed,
        )
        self.resolver.on_change(self._service.node_changed)
        self.resolver.on_change(self._prober.soon)
        config = self.config
        roads = RosterRoads(
            membership,
            self._rosters,
            self._names,
            self._bus,
            lambda: open_store(config.ipfs, config.home, public=config.public),
            self._admissions.key,
        )
        membership.on_roster(lambda view: roads.changed())
        working = [
            asyncio.create_task(each)
            for each in (
                self.resolver.run(),
                self._prober.run(),
                peers.run(),
                roads.run(),
                self._follow_sql(),
                self._chores(),
                self._keep_server(),
            )
        ]
        if not self._admissions.can_edit:
            working.append(asyncio.create_task(self._keep_certificates()))
        stop = asyncio.create_task(stopping.wait())
        try:
            done, _ = await asyncio.wait([stop, *working], return_when=asyncio.FIRST_COMPLETED)
            for task in done - {stop}:
                task.result()  # none of them ends by itself
        finally:
            everything = [stop, *working, *self._tasks]
            for task in everything:
                task.cancel()
            await asyncio.gather(*everything, return_exceptions=True)

    async def _enter(self) -> None:
        """See that the roster says where this orchestrator is, and that it has client certificates."""
        entry, membership = self._server_entry, self.membership
        assert entry is not None
        now = _now_ms()
        if self._admissions.can_edit:
            await self._renew_permission(now)
            mine = _entered(membership.member, entry)
            keep(membership, await asyncio.to_thread(self._admissions.admit, membership.roster, [mine], now), now)
            self._issue_own(now)
        else:
            await renew_certificates(membership, self._key, membership.member.roles, server=entry)
            found = membership.member
            if _entered(found, entry) != found:
                raise Forbidden(
                    "the roster does not name this orchestrator's server",
                    hint="an orchestrator that holds the admission key has to run",
                )

    def _issue_own(self, now: int) -> None:
        """Give this home its own client certificates: it holds a CA of the roster."""
        home, membership = self.config.home, self.membership
        public = client_public_key(home)
        for role in membership.member.roles:
            peer = Peer(membership.network, role, membership.name)
            store_client(home, role, self._ca.issue(public, peer, now))

    async def _renew_permission(self, now: int) -> None:
        """Have the root key, where it lies in the home, let the admission key sign on."""
        view = self.membership.roster
        if view.delegation.not_after_ms - now > RENEW_DAYS * _DAY_MS:
            return
        root = load_key(root_key_path(self.config.home))
        if root is None:
            log.warning("the permission to sign rosters ends soon: dim network init --renew --root-key FILE")
            return
        renewed = await asyncio.to_thread(self._admissions.renew, view, root, now)
        keep(self.membership, renewed, now)
        keep_root_record(self.config.home, root, renewed)

    async def _chores(self) -> None:
        """Renew what ends: own client certificates well before their day is over, and the permission to sign."""
        while True:
            await asyncio.sleep(_CHORES_S)
            if not self._admissions.can_edit:
                continue
            now = _now_ms()
            try:
                client = self.membership.client("orchestrator")
                if client.not_after_ms - now < _DAY_MS // 2:
                    self._issue_own(now)
                await self._renew_permission(now)
            except DimError as error:
                log.warning("what ends soon could not be renewed: %s", error.message)

    async def _keep_server(self) -> None:
        """Show a new server certificate before the old one ends, and have the roster say so."""
        entry, tls = self._server_entry, self._tls
        assert entry is not None and tls is not None

        def renewed(server: ServerIdentity) -> None:
            entry.certificate = server.certificate
            self._begin(self._enter_anew())

        await keep_server(self.membership, tls, renewed)

    async def _enter_anew(self) -> None:
        """Have the roster name this orchestrator's server as it is now, however long that takes."""
        while True:
            try:
                await self._enter()
                return
            except DimError as error:
                log.warning("the roster does not name the new server certificate yet: %s", error.message)
            await asyncio.sleep(_AGAIN_S)

    async def _keep_certificates(self) -> None:
        await keep_certificates(self.membership, self._key, server=lambda: self._server_entry)

    async def _follow_sql(self) -> None:
        """Take in what another editor of the same database has made: `dim network revoke`, another orchestrator."""
        while True:
            await asyncio.sleep(ROSTER_LOOK_S)
            try:
                self.membership.reload()
                if await asyncio.to_thread(self._rosters.version) > self.membership.roster.version:
                    newest = await asyncio.to_thread(self._rosters.newest)
                    if newest is not None:
                        keep(self.membership, newest, _now_ms())
            except DimError as error:
                log.warning("the roster in the database was not taken: %s", error.message)

    def _limits(self, name: str) -> Limits:
        member = self.membership.roster.members.get(name)
        return member.limits if member is not None else Limits(max_sessions=0, max_streams=0)

    def _link_changed(self, name: str) -> None:
        self._begin(self._note_link(name))

    async def _note_link(self, name: str) -> None:
        async with self._noting:  # in turn, and by how it stands now: a link may come and go in a moment
            attached = name in self._links.attached
            if attached:
                await asyncio.to_thread(self.table.set_relay, name, self.membership.name)
            row = await asyncio.to_thread(self.table.row, name)
            if attached or (row is not None and row.reach != "direct"):  # a node that is reached directly may leave
                event = Attached() if attached else Detached()
                row = await asyncio.to_thread(self.table.apply, name, event, _now_ms())
        if row is not None:
            self._service.node_changed(name)
            if self._prober is not None:
                self._prober.soon(name)

    def _begin(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a task of the orchestrator failed", exc_info=error)

    def _register(self, server: grpc.aio.Server) -> Sequence[str]:
        orchestrator_pb2_grpc.add_OrchestratorServiceServicer_to_server(self._service, server)
        return [_SERVICE, self._links.register(server)]

    def _register_door(self, server: grpc.aio.Server) -> Sequence[str]:
        orchestrator_pb2_grpc.add_OrchestratorServiceServicer_to_server(self._service, server)
        return [_SERVICE]


def member_key(home: Home, membership: Membership) -> Ed25519PrivateKey:
    """Give the key of the home that is the member: the node's, or the person's.

    Raises:
        ConfigurationError: neither is.
    """
    for path in (home.user_key, home.node_key):
        if path.exists() and ipns_name(public_bytes(key := load_or_create_key(path))) == membership.name:
            return key
    raise ConfigurationError(f"the key of member {membership.name} is not in this home")


def _agree(rosters: Rosters, membership: Membership) -> None:
    """Have the home and the database hold the same roster, the newer of the two."""
    newest = rosters.newest()
    if newest is not None and newest.version > membership.roster.version:
        keep(membership, newest, _now_ms())
    elif newest is None or newest.version < membership.roster.version:
        rosters.keep(membership.roster, _now_ms())


def _entered(member: Member, entry: orchestrator_pb2.ServerEntry) -> Member:
    return member.model_copy(
        update={
            "addresses": tuple(entry.addresses),
            "doors": tuple(entry.doors),
            "certificate": entry.certificate,
            "ca": entry.ca,
        }
    )


def _host(text: str) -> str:
    """Give the host of `HOST` or `HOST:PORT`: the door has another port."""
    if text.startswith("["):
        return text[: text.index("]") + 1] if "]" in text else text
    return text.rpartition(":")[0] if text.count(":") == 1 else text


_SERVICE: Final = orchestrator_pb2.DESCRIPTOR.services_by_name["OrchestratorService"].full_name


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
