"""The door of a network: who holds an invite is admitted, and who is a member gets new certificates.

The caller shows no client certificate here; its request is signed by the member's own key. What a stranger can cause
is bounded: the rate of an address and of all together first, then one signature check, and nothing is written before
the invite's secret was right.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

from dim_pipelines.bus.rate_limit import RateLimit
from dim_pipelines.domain.ipns import ipns_name
from dim_pipelines.domain.roster import Member
from dim_pipelines.errors import DimError, Forbidden, NodeUnreachable, QuotaExceeded
from dim_pipelines.identity.certificates import Ca
from dim_pipelines.identity.join_requests import Nonces, verify_join
from dim_pipelines.identity.membership import Membership
from dim_pipelines.identity.roster import RosterView
from dim_pipelines.orchestrator.admissions import Admissions
from dim_pipelines.orchestrator.invites import Invites
from dim_pipelines.wire.access import Peer
from dim_pipelines.wire.v1 import orchestrator_pb2

log = logging.getLogger(__name__)

ADDRESS_RATE: Final = 10.0
"""Requests a second of one address, behind which a whole site may be."""
ADDRESS_BURST: Final = 100.0
ALL_RATE: Final = 200.0
ALL_BURST: Final = 1000.0
MEMBER_RATE: Final = 0.2
"""Renewals a second of one member, which needs two a day: no member fills the memory of requests for the others."""
MEMBER_BURST: Final = 20.0
_LABEL: Final = 100


class Door:
    """Answers Join.

    Attributes:
        outcomes: what became of how many requests: `admitted`, `renewed`, or the code of the refusal.
    """

    def __init__(
        self,
        membership: Membership,
        admissions: Admissions,
        invites: Invites,
        ca: Ca,
        *,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Make the door of an orchestrator.

        Args:
            membership: the orchestrator's own.
            admissions: edits the roster.
            invites: what may be shown here.
            ca: issues the certificates.
            now_ms: Unix time in milliseconds.
            clock: seconds of a monotonic clock.
        """
        self.outcomes: Counter[str] = Counter()
        self._membership, self._admissions, self._invites, self._ca = membership, admissions, invites, ca
        self._now_ms = now_ms
        self._addresses: RateLimit[str] = RateLimit(ADDRESS_RATE, ADDRESS_BURST, clock)
        self._all: RateLimit[str] = RateLimit(ALL_RATE, ALL_BURST, clock, 1)
        self._members: RateLimit[str] = RateLimit(MEMBER_RATE, MEMBER_BURST, clock)
        self._nonces = Nonces()
        self._editing = asyncio.Lock()

    async def join(self, request: orchestrator_pb2.JoinRequest, caller: str) -> orchestrator_pb2.JoinReply:
        """Answer a request.

        Args:
            request: what the caller sent.
            caller: its IP address.

        Raises:
            QuotaExceeded: too many requests.
            Unauthenticated: the signature is wrong, or the clocks differ by more than 10 minutes.
            Forbidden: the invite is none, has ended or was used; or the key is no member's, or was revoked.
            InputError: a field is malformed.
        """
        try:
            reply, outcome = await self._join(request, caller)
        except DimError as error:
            self.outcomes[error.code] += 1
            raise
        self.outcomes[outcome] += 1
        return reply

    async def _join(self, request: orchestrator_pb2.JoinRequest, caller: str) -> tuple[orchestrator_pb2.JoinReply, str]:
        if not self._addresses.allows(caller) or not self._all.allows(""):
            raise QuotaExceeded("too many requests at this door", hint="try again in a minute")
        now = self._now_ms()
        if request.network != self._membership.network:
            raise Forbidden("this door is of another network", hint="ask for an invite of this network's orchestrator")
        verify_join(request, now)
        name = ipns_name(request.key)
        if request.invite:
            await self._admit(request, name, now)
            outcome = "admitted"
        else:
            self._membership.roster.member(name)
            if not self._members.allows(name):
                raise QuotaExceeded("too many requests of this member", hint="try again in a minute")
            self._nonces.take(request, now)
            await self._enter_server(request, name, now)
            outcome = "renewed"
        return self._reply(request, name, now), outcome

    async def _admit(self, request: orchestrator_pb2.JoinRequest, name: str, now: int) -> None:
        if not self._admissions.can_edit:
            raise Forbidden("this orchestrator cannot admit members", hint="the invite names the doors that can")
        taken = await asyncio.to_thread(
            self._invites.take, request.invite, request.secret, self._membership.network, name, now
        )
        if taken.again and name in {**self._membership.roster.members, **self._membership.roster.revoked}:
            # It was answered before. What the roster says since then holds: an invite gives nothing twice.
            self._membership.roster.member(name)
            return
        try:
            before = self._membership.roster.members.get(name)
            roles = tuple(dict.fromkeys((*(before.roles if before else ()), *taken.roles)))
            label = request.label.strip()[:_LABEL]
            fields = before.model_dump() if before else {"key": request.key, "admitted_ms": now}
            member = Member.model_validate(
                {
                    **fields,
                    "roles": roles,
                    "owner": taken.owner,
                    "label": label or (before.label if before else f"{roles[0]}-{name[-5:]}"),
                    "limits": taken.limits,
                }
            )
            await self._edit([member], now)
        except DimError:
            await asyncio.to_thread(self._invites.give_back, request.invite, name)
            raise
        log.info("admitted %s (%s) as %s", member.label, name, ", ".join(roles))

    async def _enter_server(self, request: orchestrator_pb2.JoinRequest, name: str, now: int) -> None:
        """Take in what an orchestrator says of its server, where the roster is edited here."""
        if not request.HasField("server"):
            return
        before = self._membership.roster.member(name)
        if "orchestrator" not in before.roles:
            raise Forbidden(f"{name} is no orchestrator: the roster holds no server of it")
        said = request.server
        member = before.model_copy(
            update={
                "addresses": tuple(said.addresses),
                "doors": tuple(said.doors),
                "certificate": said.certificate,
                "ca": said.ca,
            }
        )
        if member == before:
            return
        if not self._admissions.can_edit:  # as from a door that does not answer, its caller goes to the next
            raise NodeUnreachable("this orchestrator does not edit the roster, and cannot enter a server in it")
        await self._edit([member], now)

    async def _edit(self, members: Sequence[Member], now: int) -> None:
        async with self._editing:
            view = await asyncio.to_thread(self._admissions.admit, self._membership.roster, members, now)
            keep(self._membership, view, now)

    def _reply(self, request: orchestrator_pb2.JoinRequest, name: str, now: int) -> orchestrator_pb2.JoinReply:
        membership = self._membership
        view = membership.roster
        certificates: dict[str, bytes] = {
            role: self._ca.issue(request.public_key, Peer(membership.network, role, name), now)
            for role in view.member(name).roles
        }
        return orchestrator_pb2.JoinReply(
            roster=view.signed,
            pages=view.pages,
            certificates=certificates,
            swarm_key=membership.swarm_key,
            kubo_peers=membership.kubo_peers,
        )


def keep(membership: Membership, view: RosterView, now_ms: int) -> None:
    """Have the home take in a roster that was just signed; one that another process has kept meanwhile is as good."""
    if view.version > membership.roster.version:
        membership.keep_roster(view.signed, view.pages, now_ms)
