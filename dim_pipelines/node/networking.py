"""A node's part in its network: what listens for others, what speaks to them, and what it knows of them.

Nothing here is waited for when a daemon starts: roads, certificates, the roster and the question how the node is
reached have tasks of their own, which outlive every failure of the others.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dim_pipelines.bus.bus import Bus
from dim_pipelines.content.store import ContentStore
from dim_pipelines.discovery.names import NameService
from dim_pipelines.discovery.publisher import BusRoad, NameRoad, Publisher, Road
from dim_pipelines.domain.advertisement import Advertisement, Reach, RecordFields
from dim_pipelines.domain.ipns import ipns_name
from dim_pipelines.errors import ConfigurationError, DimError, Forbidden
from dim_pipelines.identity.joining import keep_certificates
from dim_pipelines.identity.keys import public_bytes
from dim_pipelines.identity.membership import Membership
from dim_pipelines.identity.roster import RosterView
from dim_pipelines.node.advertising import Reachability, record_fields
from dim_pipelines.node.announcing import AnnounceRoad
from dim_pipelines.node.attachment import Attachment, doors_to
from dim_pipelines.node.contacts import Contacts
from dim_pipelines.node.endpoints import candidate_endpoints, default_listen, local_addresses
from dim_pipelines.node.reach import ReachWatch
from dim_pipelines.node.roster_following import MembershipKeeper, RosterFollower
from dim_pipelines.settings import Home
from dim_pipelines.wire.address import Address
from dim_pipelines.wire.server import SecureListener
from dim_pipelines.wire.tls import ServerTls
from dim_pipelines.wire.v1 import node_pb2, orchestrator_pb2

log = logging.getLogger(__name__)

ROADS: Final = ("announce", "bus", "names")
"""How a record travels: told to orchestrators, as a hint, and by IPNS; any one is enough."""
FIRST_PROBE_S: Final = 4.0
"""How long the first record waits for an orchestrator to say how the node is reached, in seconds."""
STATE_S: Final = 2.0
"""How long an orchestrator may take to say what it knows of the node, in seconds."""
OWNER: Final = "local"
"""Whom a node belongs to before a network says so."""
FAREWELL_S: Final = 2.0
"""How long a draining node tries to say so, in seconds."""
TUNNELS_S: Final = 3600.0
"""How long tunnels that are in use are kept when the node is reached directly again, in seconds."""
SERVER_LOOK_S: Final = 6 * 3600.0
"""How often the server's certificate is looked at, in seconds: it is made anew 30 days before its end."""
_REVIVE_S: Final = 5.0


def find_membership(home: Home, key: Ed25519PrivateKey) -> Membership | None:
    """Give the membership of a node's home; None where the home has none, or is a member as somebody else.

    Raises:
        ConfigurationError: its files are damaged.
    """
    membership = Membership.load(home)
    if membership is None or membership.name == ipns_name(public_bytes(key)):
        return membership
    log.warning(
        "this home is in the network as %s, not as a node: the daemon serves this machine only. A node has a home of "
        "its own: DIM_HOME=DIR dim network join INVITE",
        ", ".join(membership.roles),
    )
    return None


class NodeNetwork:
    """A node in a network.

    Attributes:
        membership: the home's.
        boot: 16 random bytes of this start.
        secure: where the node's server speaks TLS.
        revoked: why the node is a member no more; empty: it is one.
    """

    def __init__(
        self,
        membership: Membership,
        key: Ed25519PrivateKey,
        *,
        listen: str = "",
        advertised: Sequence[str] = (),
        store: ContentStore,
        names: NameService | None = None,
        bus: Bus | None = None,
        roads: Collection[str] = ROADS,
        advertise: Callable[[], Advertisement],
        roster_changed: Callable[[], None],
    ) -> None:
        """Prepare; nothing is dialled, and nobody listens yet.

        Args:
            membership: the home's, whose member the node's key is.
            key: the node's key.
            listen: `HOST:PORT` for others; when empty all addresses, or loopback in a network that is all loopback.
            advertised: `HOST:PORT` at which others reach it; when empty what the machine's addresses say.
            store: where the blocks of a roster lie that is found by its name.
            names: the road of IPNS; None: not taken.
            bus: the road of hints; None: not taken.
            roads: by which of `ROADS` records go.
            advertise: gives the node's advertisement as it is now.
            roster_changed: is called with each newer roster.

        Raises:
            ConfigurationError: an address is malformed, or the server's key cannot be read.
        """
        self.membership = membership
        self.boot = os.urandom(16)
        self.revoked = ""
        self._key = key
        self._names, self._bus, self._store = names, bus, store
        self._chosen = frozenset(roads)
        self._advertised = tuple(advertised)
        self._advertise = advertise
        self._roster_changed = roster_changed
        self._reach_changed: Callable[[], None] = lambda: None
        self._identity = membership.server()
        tls = ServerTls(self._identity, lambda: membership.roster.client_cas(), membership.guard)
        self.secure = SecureListener(listen or default_listen(self._known_addresses()), tls)
        candidate_endpoints("127.0.0.1:1", (), self._advertised)  # malformed ones are an error now
        self._contacts = Contacts(membership.orchestrators, lambda: membership.client("node"))
        self._announcing = AnnounceRoad(self._contacts)
        self._follower = RosterFollower(MembershipKeeper(membership), self._contacts)
        self._arrived = asyncio.Event()

    @asynccontextmanager
    async def running(self, secure_address: str) -> AsyncIterator[None]:
        """Take part in the network while the block runs.

        Args:
            secure_address: where the server speaks TLS, with the port that it has.
        """
        membership = self.membership
        self.secure_address = secure_address
        self._reach = ReachWatch(self._contacts, self._endpoints, lambda: self._identity.certificate, self._reached)
        self._publisher = Publisher(self._key, self._fields, self._roads(), membership.home.node / "sequences.json")
        self._attachment = Attachment(
            membership.name,
            self.boot,
            lambda: doors_to(membership.orchestrators(), membership.client("node")),
            own_server(secure_address),
            changed=self.changed,
        )
        self._attached: asyncio.Task[None] | None = None
        self._leaving: asyncio.Task[None] | None = None
        silence = membership.on_roster(self._took_roster)
        self._check_membership()
        parts = {
            "certificates": self._keep_certificates,
            "server certificate": self._keep_server,
            "roster": self._follower.run,
            "roster hints": self._take_hints,
            "roster names": self._resolve_roster,
            "reach": self._reach.run,
            "records": self._publish,
        }
        tasks = [asyncio.create_task(_for_ever(name, part)) for name, part in parts.items()]
        try:
            yield
        finally:
            silence()
            tasks += filter(None, (self._attached, self._leaving))
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._contacts.close()
            for service in (self._names, self._bus):
                if service is not None:
                    await service.close()

    def on_reach(self, callback: Callable[[], None]) -> None:
        """Call back when it has become known how the node is reached."""
        self._reach_changed = callback

    @property
    def reached(self) -> Reach | None:
        """How the node is reached; None while no orchestrator has said."""
        return self._reach.current.reach if self._reach.asked.is_set() else None

    @property
    def reach(self) -> Reachability:
        """How the node is reached, as far as is known."""
        found = self._reach.current
        attached_to = (self._attachment.attached_to,) if self._attachment.attached_to else ()
        return Reachability(found.reach, found.endpoints, attached_to, found.reason)

    def changed(self) -> None:
        """Publish soon: something that the record says has changed."""
        self._publisher.changed()

    async def say_farewell(self) -> None:
        """Publish that the node is draining, by whichever road is quick enough."""
        self._arrived.clear()
        self.changed()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FAREWELL_S):
                await self._arrived.wait()

    async def status(self, message: node_pb2.NodeStatus) -> None:
        """Add what the node knows of its network, and what an orchestrator says of it now."""
        membership, reach = self.membership, self.reach
        message.network, message.revoked = membership.network, self.revoked
        message.reach, message.reach_reason = reach.reach, reach.reason
        message.endpoints.extend(reach.endpoints)
        message.attached_to.extend(reach.attached_to)
        for name, road in self._publisher.roads().items():
            message.roads.add(name=name, last_ok_ms=road.ok_ms, last_error=road.error, failures=road.failures)
        message.roster_version = membership.roster.version
        message.roster_seen_ms = self._follower.seen_ms
        with contextlib.suppress(ConfigurationError):  # none yet: the map says so by lacking the role
            message.certificates["node"] = membership.client("node").not_after_ms
        message.sequence = self._sequence()
        message.secure = self.secure_address
        message.state, message.state_reason = await self._state()

    async def _state(self) -> tuple[str, str]:
        """Ask an orchestrator in which state it holds this node; what it last said where none answers."""
        request = orchestrator_pb2.GetNodeRequest(name=self.membership.name, limit=1)
        try:
            reply = await self._contacts.ask_one(lambda stub: stub.GetNode(request), STATE_S)
        except DimError as error:
            return self._announcing.state, f"{self._announcing.reason}; now: {error.message}".removeprefix("; ")
        return reply.node.state, reply.node.reason

    @property
    def owner(self) -> str:
        """Whom the node belongs to, as the roster says."""
        member = self.membership.roster.members.get(self.membership.name)
        return member.owner if member else OWNER

    def _sequence(self) -> int:
        """Give the sequence of the newest record that arrived anywhere; 0: none has."""
        return max((road.sequence for road in self._publisher.roads().values()), default=0)

    def _roads(self) -> dict[str, Road]:
        roads: dict[str, Road] = {"announce": self._announcing}
        if self._bus is not None:
            roads["bus"] = BusRoad(self._bus)
        if self._names is not None:
            roads["names"] = NameRoad(self._names)
        return {name: _ToldRoad(road, self._arrived) for name, road in roads.items() if name in self._chosen}

    def _fields(self) -> RecordFields:
        return record_fields(
            self._advertise(), self.membership.network, self.boot, self._identity.certificate, self.reach, _now_ms()
        )

    async def _publish(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FIRST_PROBE_S):
                await self._reach.asked.wait()
        await self._publisher.run()

    async def _keep_certificates(self) -> None:
        """Keep the client certificate; with a new one, what the old one could not do is tried again at once."""

        def report(error: DimError | None) -> None:
            if error is None:
                self._reach.soon()
                self.changed()

        await keep_certificates(self.membership, self._key, ("node",), report=report)

    async def _keep_server(self) -> None:
        """Show a new server certificate before the old one ends; the record that pins it goes out at once."""
        while True:
            await asyncio.sleep(SERVER_LOOK_S)
            identity = self.membership.server()
            if identity.certificate != self._identity.certificate:
                self._identity = self.secure.tls.identity = identity
                self._reach.soon()
                self.changed()

    async def _take_hints(self) -> None:
        if self._bus is not None:
            await self._follower.take_hints(self._bus)

    async def _resolve_roster(self) -> None:
        if self._names is not None:
            await self._follower.resolve(self.membership.network, self._names, self._store)

    def _reached(self, found: Reachability) -> None:
        """Attach where nobody can dial in, and say so; detach where it is not needed any more."""
        if found.reach == "attached" and self._attached is None:
            self._attached = asyncio.create_task(_for_ever("attachment", self._attachment.run))
        if found.reach == "attached" and self._leaving is not None:
            self._leaving.cancel()
            self._leaving = None
        elif found.reach == "direct" and self._attached is not None and self._leaving is None:
            self._arrived.clear()
            self._leaving = asyncio.create_task(self._leave(self._attached))
        self._reach_changed()
        self.changed()

    async def _leave(self, attached: asyncio.Task[None]) -> None:
        """Detach once the record that says so is out, and who came through a tunnel has gone."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FIRST_PROBE_S):
                await self._arrived.wait()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(TUNNELS_S):
                await self._attachment.unused()
        attached.cancel()
        self._attached = self._leaving = None

    def _took_roster(self, view: RosterView) -> None:
        self._check_membership()
        self._roster_changed()

    def _check_membership(self) -> None:
        """See whether the node is a member still; one that is none goes on serving its own machine."""
        try:
            roles = self.membership.member.roles
            self.revoked = "" if "node" in roles else "the roster lists it, but not as a node"
        except Forbidden as error:
            self.revoked = error.message
        if self.revoked:
            log.error("this node is none of the network any more: %s", self.revoked)

    def _known_addresses(self) -> list[str]:
        return _known_addresses(self.membership)

    def _endpoints(self) -> tuple[str, ...]:
        return candidate_endpoints(self.secure_address, local_addresses(self._known_addresses()), self._advertised)


class _ToldRoad:
    """A road that tells when a record has arrived."""

    def __init__(self, road: Road, arrived: asyncio.Event) -> None:
        self._road = road
        self._arrived = arrived

    async def send(self, name: str, raw: bytes) -> None:
        await self._road.send(name, raw)
        self._arrived.set()


def own_server(secure_address: str) -> str:
    """Give the address by which this machine reaches its own listener."""
    bound = Address.parse(secure_address, secure=True)
    loopback = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(bound.host)
    return str(Address(host=loopback, port=bound.port)) if loopback else secure_address


def _known_addresses(membership: Membership) -> list[str]:
    addresses = [address for each in membership.orchestrators() for address in each.addresses]
    return [*addresses, *(door.address for door in membership.doors)]


async def _for_ever(name: str, run: Callable[[], Awaitable[None]]) -> None:
    """Run a part of the node; where it fails by a fault of this code, say so and run it again."""
    while True:
        try:
            await run()
            return
        except Exception:  # one part's fault must not silence the others
            log.exception("the node's part for %s failed", name)
        await asyncio.sleep(_REVIVE_S)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
