"""The roster: who is a member of a network, in which roles, until when; signed by the network's admission key.

The network's id is the IPNS name of its root key. The root key signs a `Delegation` to an admission key; the
admission key signs each version of the roster. A version names its pages by CID, so that a change travels as the
pages that it changed.
"""

from __future__ import annotations

from typing import ClassVar, Final, Literal

from dim_pipelines.domain.cid import Cid
from dim_pipelines.domain.format import Format, Value

Role = Literal["node", "orchestrator", "run_host", "publisher", "user"]
"""What a member may be; `dim_pipelines.wire.access` says which role may call what."""
ROLES: Final[tuple[Role, ...]] = ("node", "orchestrator", "run_host", "publisher", "user")

MAX_MEMBERS_PER_PAGE: Final = 256
"""How many members and revocations one page holds, at most; a page stays far below 512 KiB."""


class Limits(Value):
    """What a member may use at a time; absent: no limit.

    Attributes:
        max_sessions: open work sessions.
        max_streams: open tunnels through an orchestrator.
    """

    max_sessions: int | None = None
    max_streams: int | None = None


class Member(Value):
    """An admitted key.

    Attributes:
        key: Ed25519 public key, 32 bytes.
        roles: what it may be.
        owner: the person or organisation it belongs to.
        label: its name for people.
        limits: what it may use at a time.
        ca: DER of the CA (P-256) whose client certificates are honoured; orchestrators only.
        certificate: DER of the server certificate (P-256) that its server shows; orchestrators only.
        addresses: `HOST:PORT` where its server listens; orchestrators only.
        doors: `HOST:PORT` where it takes Join, without a client certificate; orchestrators only.
        admitted_ms: Unix time in milliseconds.
    """

    key: bytes
    roles: tuple[Role, ...]
    owner: str
    label: str = ""
    limits: Limits = Limits()
    ca: bytes | None = None
    certificate: bytes | None = None
    addresses: tuple[str, ...] = ()
    doors: tuple[str, ...] = ()
    admitted_ms: int


class Revocation(Value):
    """A key that is no member any more, since when (Unix milliseconds) and why."""

    key: bytes
    reason: str
    revoked_ms: int


class RosterPage(Format):
    """A part of the roster: members and revocations, each in the order of their keys."""

    kind_name: ClassVar[str] = "dim/roster-page"
    members: tuple[Member, ...] = ()
    revoked: tuple[Revocation, ...] = ()


class Delegation(Format):
    """The root key's permission for an admission key to sign rosters, from and until (Unix milliseconds)."""

    kind_name: ClassVar[str] = "dim/delegation"
    network: str
    key: bytes
    not_before_ms: int
    not_after_ms: int


class Roster(Format):
    """One version of the roster.

    Attributes:
        network: IPNS name of the root key.
        version: 1, 2, 3 …; a lower one is refused, and so is an equal one with other bytes.
        issued_ms: Unix time in milliseconds.
        pages: CIDs of its `RosterPage`s.
        delegation: the encoded `Delegation` of the key that signs this version.
        delegation_signature: the encoded `Signature` of the root key over the delegation's CID.
    """

    kind_name: ClassVar[str] = "dim/roster"
    network: str
    version: int
    issued_ms: int
    pages: tuple[Cid, ...]
    delegation: bytes
    delegation_signature: bytes


class SignedRoster(Format):
    """A roster's bytes with the encoded `Signature` of the delegated key over their CID."""

    kind_name: ClassVar[str] = "dim/signed-roster"
    roster: bytes
    signature: bytes


class Invite(Format):
    """What an invite string carries: where to join, whom to expect there, and a secret that works once.

    Attributes:
        network: IPNS name of the root key: the one thing that the joiner trusts.
        doors: `HOST:PORT` of orchestrators that take Join.
        certificates: SHA-256 of each door's server certificate (DER), in the order of `doors`.
        id: names the invite in the orchestrator's table.
        secret: 32 random bytes; the table keeps only their SHA-256.
        roles: what the joiner will be.
        not_after_ms: Unix time in milliseconds at which it ends.
    """

    kind_name: ClassVar[str] = "dim/invite"
    network: str
    doors: tuple[str, ...]
    certificates: tuple[bytes, ...]
    id: str
    secret: bytes
    roles: tuple[Role, ...]
    not_after_ms: int
