"""Who may call what: the role of every RPC method, and the peer that a client certificate names.

A peer's certificate carries one SPIFFE id, `spiffe://NETWORK/ROLE/NAME`: the network's id, one role, and the IPNS
name of the member's key. Source of the form: https://github.com/spiffe/spiffe/blob/main/standards/X509-SVID.md.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from dim_pipelines.domain.roster import ROLES, Role
from dim_pipelines.errors import Unauthenticated

_EVERY_MEMBER: Final = frozenset(ROLES)
_DISPATCH: Final[frozenset[Role]] = frozenset({"run_host", "orchestrator"})
ANYBODY: Final[frozenset[Role]] = frozenset()
"""The roles of a method that is served at the door, to callers without a certificate."""

METHOD_ROLES: Final[Mapping[str, frozenset[Role]]] = {
    "/dim.v1.NodeService/Work": _DISPATCH,
    "/dim.v1.NodeService/DescribeNode": _EVERY_MEMBER,
    "/dim.v1.NodeService/WarmModel": _DISPATCH,
    "/dim.v1.NodeService/Drain": frozenset({"orchestrator"}),
    "/dim.v1.NodeService/GetStatus": frozenset({"orchestrator"}),
    "/dim.v1.NodeService/BenchmarkModel": frozenset({"orchestrator"}),
    "/dim.v1.BlockService/Have": _DISPATCH,
    "/dim.v1.BlockService/Get": _DISPATCH,
    "/dim.v1.BlockService/Put": _DISPATCH,
    "/dim.v1.OrchestratorService/Announce": frozenset({"node", "orchestrator"}),
    "/dim.v1.OrchestratorService/Join": ANYBODY,
    "/dim.v1.OrchestratorService/WatchRoster": _EVERY_MEMBER,
    "/dim.v1.OrchestratorService/ListNodes": _EVERY_MEMBER,
    "/dim.v1.OrchestratorService/WatchNodes": _EVERY_MEMBER,
    "/dim.v1.OrchestratorService/GetNode": _EVERY_MEMBER,
    "/dim.v1.OrchestratorService/ProbeReach": frozenset({"node", "orchestrator"}),
    "/dim.v1.OrchestratorService/ListPeers": _EVERY_MEMBER,
    "/dim.v1.LinkService/Attach": frozenset({"node"}),
    "/dim.v1.LinkService/Dial": frozenset({"node"}),
    "/dim.v1.LinkService/Connect": _DISPATCH,
    "/grpc.health.v1.Health/Check": _EVERY_MEMBER,
    "/grpc.health.v1.Health/Watch": _EVERY_MEMBER,
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": _EVERY_MEMBER,
}
"""Method → roles that may call it. A method that is not here is refused on a server with TLS."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A caller whose certificate was checked by TLS.

    Attributes:
        network: id of its network.
        role: the one role it comes in.
        name: IPNS name of its member's key.
        issuer: key identifier of the CA that issued the certificate; empty where none is meant.
    """

    network: str
    role: Role
    name: str
    issuer: bytes = b""

    def spiffe_id(self) -> str:
        """Write the SPIFFE id of the certificate."""
        return f"spiffe://{self.network}/{self.role}/{self.name}"

    @classmethod
    def parse(cls, text: str) -> Peer:
        """Read a SPIFFE id.

        Raises:
            Unauthenticated: it is none of DIM's.
        """
        parts = text.removeprefix("spiffe://").split("/")
        if not text.startswith("spiffe://") or len(parts) != 3 or parts[1] not in ROLES or not all(parts):
            raise Unauthenticated(f"not the id of a member: {text[:200]!r}")
        return cls(parts[0], parts[1], parts[2])


class Guard(Protocol):
    """Decides whether a peer is let in; `identity` implements it over the newest roster."""

    def check(self, peer: Peer) -> None:
        """Let a peer in or refuse it.

        Raises:
            Forbidden: another network, no member, not in this role, revoked, or by a CA that is honoured no more.
        """
        ...

    def revoked(self, peer: Peer) -> asyncio.Event:
        """Give the event that is set once the peer is let in no more; of the running loop."""
        ...
