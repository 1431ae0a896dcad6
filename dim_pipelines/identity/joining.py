"""Joining a network, and new certificates for its members: the asking side.

The caller pins a door by the invite's hash and believes the answer because the roster in it is signed under the one
name that the invite carries, the network's. What gives a stranger the right to be a member is the invite's secret.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import grpc
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dim_pipelines.domain.ipns import ipns_name
from dim_pipelines.domain.roster import ROLES, Role
from dim_pipelines.errors import (
    ConfigurationError,
    DimError,
    Forbidden,
    InputError,
    NodeUnreachable,
    ProtocolError,
    RecordExpired,
    RolledBack,
    Unauthenticated,
)
from dim_pipelines.identity.certificates import (
    SKEW,
    ServerIdentity,
    check_client,
    client_public_key,
    server_name,
    store_client,
)
from dim_pipelines.identity.invites import parse_invite
from dim_pipelines.identity.join_requests import Nonces, join_request, verify_join
from dim_pipelines.identity.keys import load_or_create_key, public_bytes
from dim_pipelines.identity.membership import Door, Membership
from dim_pipelines.identity.roster import RosterView
from dim_pipelines.settings import Home
from dim_pipelines.wire.access import Peer
from dim_pipelines.wire.channel import open_channel
from dim_pipelines.wire.status import from_rpc_error
from dim_pipelines.wire.tls import PinnedPeer, ServerTls, certificate_hash, fetch_certificate
from dim_pipelines.wire.v1 import orchestrator_pb2, orchestrator_pb2_grpc

__all__ = [
    "Nonces",
    "join_network",
    "join_request",
    "keep_certificates",
    "keep_server",
    "refresh_certificates",
    "renew_certificates",
    "verify_join",
]

log = logging.getLogger(__name__)

JOIN_SECONDS: Final = 30.0
"""How long a door has for its answer."""
_DAY_S: Final = 86_400.0
_NAP_S: Final = 60.0  # a machine that slept, or whose clock was set, is noticed after this
_FIRST_PAUSE_S: Final = 5.0
_LAST_PAUSE_S: Final = 300.0


def _clock() -> int:
    return time.time_ns() // 1_000_000


async def join_network(
    home: Home,
    invite: str,
    *,
    label: str,
    key: Ed25519PrivateKey | None = None,
    trust_publishers: bool = True,
    now_ms: Callable[[], int] = _clock,
) -> Membership:
    """Join a network with an invite; the doors that it names are tried in turn.

    Args:
        home: gets the roster, the certificates and the swarm key.
        invite: the string.
        label: the member's name for people.
        key: the member's key; the home's node key when left out.
        trust_publishers: whether signed models of the network's publishers are loaded.
        now_ms: the clock, in Unix milliseconds.

    Raises:
        InputError: the invite cannot be read.
        Forbidden: the invite has expired, was used, or is not known.
        Unauthenticated: a door shows another certificate, or a clock is wrong.
        NodeUnreachable: no door answers.
        ConfigurationError: the home is a member of another network.
        RecordForged: the roster in the answer is not that of the invite's network.
    """
    parsed = parse_invite(invite, now_ms())
    member = key or load_or_create_key(home.node_key)
    before = Membership.load(home)
    if before is not None and before.network != parsed.network:
        raise ConfigurationError(
            f"this home is a member of another network: {before.network}", hint="use another DIM_HOME for this network"
        )
    doors = tuple(Door(address, pin) for address, pin in zip(parsed.doors, parsed.certificates, strict=True))
    request = join_request(
        member, parsed.network, client_public_key(home),
        now_ms=now_ms(), invite=parsed.id, secret=parsed.secret, label=label,
    )  # fmt: skip
    reply = await _ask(doors, request)
    name = ipns_name(public_bytes(member))
    roster = RosterView.open(reply.roster, reply.pages, parsed.network, now_ms())
    roles = roster.member(name).roles
    _store(home, reply, roster, name, roles)
    return Membership.create(
        home, network=parsed.network, name=name, roles=roles, signed=reply.roster, pages=reply.pages, now_ms=now_ms(),
        doors=doors, swarm_key=reply.swarm_key, kubo_peers=reply.kubo_peers, trust_publishers=trust_publishers,
    )  # fmt: skip


async def renew_certificates(
    membership: Membership,
    key: Ed25519PrivateKey,
    roles: Sequence[Role],
    *,
    server: orchestrator_pb2.ServerEntry | None = None,
    now_ms: Callable[[], int] = _clock,
) -> None:
    """Get new client certificates, and the newest roster, at the first door that answers.

    Args:
        membership: the home's.
        key: its member's key.
        roles: in which a certificate is wanted; the answer has one for each role of the roster.
        server: what the roster should say of an orchestrator's server.
        now_ms: the clock, in Unix milliseconds.

    Raises:
        Forbidden: the member was revoked, or is in none of these roles any more.
        Unauthenticated: a clock is wrong.
        NodeUnreachable: no door answers.
        ProtocolError: the answer lacks a certificate.
    """
    known = [
        Door(address, certificate_hash(peer.certificate))
        for peer in membership.orchestrators()
        for address in peer.doors
    ]
    doors = list(dict.fromkeys([*known, *membership.doors]))
    request = join_request(key, membership.network, client_public_key(membership.home), now_ms=now_ms(), server=server)
    reply = await _ask(doors, request)
    try:
        membership.keep_roster(reply.roster, reply.pages, now_ms())
    except (RolledBack, RecordExpired) as error:  # this home knows better, or nobody knows anything newer
        log.warning("the roster of the orchestrator is not taken: %s", error.message)
    membership.roster.member(membership.name)
    _store(membership.home, reply, membership.roster, membership.name, roles)
    if reply.kubo_peers:
        membership.keep_peers(list(reply.kubo_peers))


async def keep_certificates(
    membership: Membership,
    key: Ed25519PrivateKey,
    roles: Sequence[Role] | None = None,
    *,
    server: Callable[[], orchestrator_pb2.ServerEntry | None] = lambda: None,
    report: Callable[[DimError | None], None] = lambda error: None,
    now_ms: Callable[[], int] = _clock,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    chance: random.Random | None = None,
) -> None:
    """Renew a member's client certificates at half of their life, for as long as it runs.

    Channels show the new ones with their next RPC. While no door answers it is tried again after 5 s, and ever
    later up to 5 minutes.

    Args:
        membership: the home's.
        key: its member's key.
        roles: in which certificates are kept; when left out those that the roster says, now and later.
        server: what the roster should say of an orchestrator's server.
        report: is told of each renewal, and of the error of each that failed.
        now_ms: the clock, in Unix milliseconds.
        sleep: waits some seconds.
        chance: spreads the renewals of many members; half of a life is ± 10 %.
    """
    chance = chance or random.Random()
    failures, last = 0, ""
    while True:
        share = 0.5 * chance.uniform(0.9, 1.1)
        while (wait := _due_ms(membership, _roles(membership, roles), share) - now_ms()) > 0:
            await sleep(min(wait / 1000, _NAP_S))
        try:
            await renew_certificates(membership, key, _roles(membership, roles), server=server(), now_ms=now_ms)
        except DimError as error:
            report(error)
            if error.message != last:
                log.warning("the client certificates cannot be renewed: %s", error.message)
            last = error.message
            pause = min(_LAST_PAUSE_S, _FIRST_PAUSE_S * 2 ** min(failures, 10))
            failures += 1
            await sleep(pause * chance.uniform(0.5, 1.0))
        else:
            report(None)
            failures, last = 0, ""


async def refresh_certificates(
    membership: Membership,
    key: Ed25519PrivateKey,
    roles: Sequence[Role] | None = None,
    *,
    now_ms: Callable[[], int] = _clock,
) -> None:
    """Renew a member's client certificates now if they have lived half of their life: for who runs only now and then.

    Where that fails, the old ones do for as long as they hold.

    Args:
        membership: the home's.
        key: its member's key.
        roles: in which certificates are wanted; when left out those that the roster says.
        now_ms: the clock, in Unix milliseconds.

    Raises:
        DimError: what `renew_certificates` raised, and a certificate is missing or has ended.
    """
    wanted = _roles(membership, roles)
    if now_ms() < _due_ms(membership, wanted, 0.5):
        return
    try:
        await renew_certificates(membership, key, wanted, now_ms=now_ms)
    except DimError as error:
        if now_ms() >= _due_ms(membership, wanted, 1.0):
            raise
        log.warning("the client certificates cannot be renewed: %s", error.message)


async def keep_server(
    membership: Membership,
    tls: ServerTls,
    renewed: Callable[[ServerIdentity], None],
    *,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Renew a member's server certificate 30 days before its end, for as long as its server runs.

    New connections see the new one at once and those that stand go on, so nothing is lost once the new record, or the
    roster's new entry of an orchestrator, is known to others.

    Args:
        membership: the home's.
        tls: what the server shows.
        renewed: is told of the new one: publish it.
        sleep: waits some seconds.
    """
    while True:
        try:
            fresh = membership.server()
        except DimError as error:
            log.warning("the server's certificate cannot be renewed: %s", error.message)
        else:
            if fresh.certificate_pem != tls.identity.certificate_pem:
                tls.identity = fresh
                renewed(fresh)
        await sleep(_DAY_S)


def _roles(membership: Membership, roles: Sequence[Role] | None) -> Sequence[Role]:
    if roles is not None:
        return roles
    member = membership.roster.members.get(membership.name)
    return member.roles if member is not None else membership.roles


def _due_ms(membership: Membership, roles: Sequence[Role], share: float) -> int:
    """Give the Unix milliseconds at which the first of the certificates has lived a share of its life."""
    moments: list[int] = []
    for role in roles:
        try:
            client = membership.client(role)
        except ConfigurationError:  # there is none, or it cannot be read: a new one mends that
            return 0
        issued = client.not_before_ms + int(SKEW.total_seconds() * 1000)
        moments.append(issued + int((client.not_after_ms - issued) * share))
    return min(moments, default=0)


async def _ask(doors: Sequence[Door], request: orchestrator_pb2.JoinRequest) -> orchestrator_pb2.JoinReply:
    """Ask the doors in turn until one answers; a refusal is an answer, an impostor and silence are none."""
    failures: list[DimError] = []
    for door in doors:
        try:
            certificate = await fetch_certificate(door.address, door.certificate_hash)
            peer = PinnedPeer(server_name(certificate), certificate)
            async with open_channel(door.address, peer=peer) as channel:
                stub = orchestrator_pb2_grpc.OrchestratorServiceStub(channel)
                return await stub.Join(request, timeout=JOIN_SECONDS)
        except grpc.aio.AioRpcError as error:
            translated = from_rpc_error(error)
            if not isinstance(translated, NodeUnreachable):
                raise translated from error
            failures.append(translated)
        except (NodeUnreachable, Unauthenticated, ConfigurationError, InputError) as error:
            failures.append(error)
    if not failures:
        raise NodeUnreachable("no door of the network is known", hint="ask for an invite: dim network invite")
    impostor = next((error for error in failures if isinstance(error, Unauthenticated)), None)
    chosen = impostor or failures[0]
    if len(failures) == 1:
        raise chosen
    raise type(chosen)(f"none of {len(failures)} doors let us in; {chosen.message}", hint=chosen.hint) from chosen


def _store(home: Home, reply: orchestrator_pb2.JoinReply, roster: RosterView, name: str, roles: Sequence[Role]) -> None:
    """Check and keep the certificates of an answer: all that are wanted, or none."""
    wanted: dict[Role, bytes] = {}
    for role in ROLES:
        certificate = reply.certificates.get(role)
        if role in roles and certificate is None:
            raise ProtocolError(f"the orchestrator gave no certificate for the role {role}")
        if certificate is not None:
            check_client(certificate, Peer(roster.network, role, name), roster.client_cas())
            wanted[role] = certificate
    if not wanted:
        raise Forbidden("the orchestrator gave no certificate")
    for role, certificate in wanted.items():
        store_client(home, role, certificate)
