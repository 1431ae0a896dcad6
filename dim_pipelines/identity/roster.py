"""The roster as a value: made and edited with the admission key, opened only where every signature holds. Pure.

Members lie in pages by the leading bits of their keys: a page that would hold too many is split in two, so that equal
rosters have equal pages whatever their history, and an edit changes the page of its member alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dim_pipelines.domain.cid import DAG_CBOR, Cid
from dim_pipelines.domain.grant import Signature
from dim_pipelines.domain.ipns import ipns_name, public_of
from dim_pipelines.domain.roster import (
    MAX_MEMBERS_PER_PAGE,
    Delegation,
    Member,
    Revocation,
    Role,
    Roster,
    RosterPage,
    SignedRoster,
)
from dim_pipelines.errors import (
    ContentNotFound,
    Forbidden,
    InputError,
    RecordExpired,
    RecordForged,
    RolledBack,
)
from dim_pipelines.identity.certificates import key_identifier, server_name
from dim_pipelines.identity.keys import public_bytes
from dim_pipelines.identity.signatures import sign, verify
from dim_pipelines.wire.address import Address

DELEGATION_DOMAIN: Final = "dim/delegation/1"
ROSTER_DOMAIN: Final = "dim/roster/1"
DELEGATION_DAYS: Final = 30
SKEW_MS: Final = 10 * 60_000
"""How far ahead of this machine's clock a roster may be issued; from there on a clock is wrong."""
MAX_BLOCK_BYTES: Final = 512 * 1024
"""The largest signed roster and the largest page."""

_DAY_MS: Final = 86_400_000


@dataclass(frozen=True)
class RosterView:
    """One version of the roster, every signature of which was checked.

    Attributes:
        roster: what was signed.
        delegation: who may sign it, and until when.
        signed: its bytes, a `SignedRoster`.
        pages: its pages' bytes, in its order.
        members: by IPNS name.
        revoked: by IPNS name.
    """

    roster: Roster
    delegation: Delegation
    signed: bytes
    pages: tuple[bytes, ...]
    members: Mapping[str, Member] = field(repr=False)
    revoked: Mapping[str, Revocation] = field(repr=False)

    @classmethod
    def open(cls, signed: bytes, pages: Iterable[bytes], network: str, now_ms: int | None) -> RosterView:
        """Verify a roster.

        Args:
            signed: a `SignedRoster`.
            pages: its pages in any order; others among them do not matter.
            network: the network's id, the only thing that is trusted beforehand.
            now_ms: Unix time in milliseconds; None for a roster that was accepted before, of which the clock is not
                asked again: the last one known stays good while no newer one can be had.

        Raises:
            RecordForged: malformed, another network's, or not signed by a key that the network's root delegated to.
            RecordExpired: the delegation has ended.
            ContentNotFound: a page is missing.
        """
        roster, delegation = read_roster(signed, network)
        if now_ms is not None:
            if roster.issued_ms - now_ms >= SKEW_MS:
                raise RecordForged(
                    f"the roster was issued {(roster.issued_ms - now_ms) // 1000} s in the future",
                    hint="a clock is wrong: dim doctor",
                )
            if now_ms >= delegation.not_after_ms:
                raise RecordExpired(
                    "the permission to sign rosters has ended",
                    hint="where the network's root key lies: dim network init --renew",
                )
        by_cid = {Cid.of(DAG_CBOR, page): page for page in pages}
        missing = [cid for cid in roster.pages if cid not in by_cid]
        if missing:
            raise ContentNotFound(
                f"{len(missing)} of {len(roster.pages)} pages of the roster are missing: {missing[0]}"
            )
        ordered = tuple(by_cid[cid] for cid in roster.pages)
        members, revoked = _read_pages(ordered)
        return cls(roster, delegation, signed, ordered, MappingProxyType(members), MappingProxyType(revoked))

    @property
    def network(self) -> str:
        """The network's id."""
        return self.roster.network

    @property
    def version(self) -> int:
        """Its version."""
        return self.roster.version

    def member(self, name: str) -> Member:
        """Give a member.

        Raises:
            Forbidden: no member, or revoked.
        """
        if (revocation := self.revoked.get(name)) is not None:
            raise Forbidden(f"{name} was revoked: {revocation.reason}")
        if (member := self.members.get(name)) is None:
            raise Forbidden(f"{name} is no member of the network", hint="ask for an invite: dim network invite")
        return member

    def with_role(self, role: Role) -> list[Member]:
        """Give the members in a role, in the order of their keys."""
        return [member for member in self.members.values() if role in member.roles]

    def client_cas(self) -> list[bytes]:
        """Give DER of the CAs whose client certificates are honoured: those of the orchestrators.

        One that is none is left out: it must not keep a server from reading the others.
        """
        return [each.ca for each in self.with_role("orchestrator") if each.ca is not None and _is_ca(each.ca)]


def read_roster(signed: bytes, network: str) -> tuple[Roster, Delegation]:
    """Verify a roster without its pages, for instance to learn which to fetch.

    Raises:
        RecordForged: malformed, another network's, or not signed by a key that the network's root delegated to.
    """
    if len(signed) > MAX_BLOCK_BYTES:
        raise RecordForged(f"a roster of {len(signed)} bytes is over {MAX_BLOCK_BYTES}")
    try:
        outer = SignedRoster.decode(signed)
        roster = Roster.decode(outer.roster)
        delegation = Delegation.decode(roster.delegation)
        root_signature = Signature.decode(roster.delegation_signature)
        signature = Signature.decode(outer.signature)
        root = public_of(network)
    except InputError as error:
        raise RecordForged(f"the roster cannot be read: {error.message}") from error
    if roster.network != network or delegation.network != network:
        raise RecordForged(f"the roster is that of another network: {roster.network[:80]!r}")
    try:
        delegator = verify(root_signature, DELEGATION_DOMAIN, Cid.of(DAG_CBOR, roster.delegation))
        signer = verify(signature, ROSTER_DOMAIN, Cid.of(DAG_CBOR, outer.roster))
    except Forbidden as error:
        raise RecordForged(f"the roster's signature does not hold: {error.message}") from error
    if delegator != root:
        raise RecordForged("the roster's signer was not delegated to by the network's root key")
    if signer != delegation.key:
        raise RecordForged("the roster is signed by a key that may not sign it")
    if not delegation.not_before_ms <= roster.issued_ms < delegation.not_after_ms:
        raise RecordForged("the roster was issued outside of its signer's time")
    # Versions count edits and time counts milliseconds: a stolen key cannot use the numbers up.
    if not 0 < roster.version <= max(1, roster.issued_ms):
        raise RecordForged(f"a roster cannot have version {roster.version}")
    return roster, delegation


def accept(current: RosterView | None, offered: RosterView) -> bool:
    """Tell whether an offered roster is newer than the one that holds; False when it is the same.

    Raises:
        RolledBack: it is older, or another one of the same version, or by an older delegation.
    """
    if current is None:
        return True
    if offered.signed == current.signed:
        return False
    if offered.version < current.version:
        raise RolledBack(f"roster version {offered.version} is older than {current.version}, which was accepted before")
    if offered.version == current.version:
        raise RolledBack(f"there are two rosters of version {offered.version}", hint="ask the network's operator")
    if offered.delegation.not_before_ms < current.delegation.not_before_ms:
        raise RolledBack("the roster is signed under an older permission than one that was accepted before")
    return True


def delegate(
    root_key: Ed25519PrivateKey, admission: bytes, now_ms: int, days: int = DELEGATION_DAYS
) -> tuple[bytes, bytes]:
    """Let an admission key sign the roster for a time.

    Args:
        root_key: the network's root key.
        admission: public key (32 bytes).
        now_ms: Unix time in milliseconds.
        days: for how long.

    Returns:
        The encoded `Delegation` and the encoded `Signature` of the root key.
    """
    delegation = Delegation(
        network=ipns_name(public_bytes(root_key)),
        key=admission,
        not_before_ms=now_ms,
        not_after_ms=now_ms + days * _DAY_MS,
    ).encode()
    return delegation, sign(root_key, DELEGATION_DOMAIN, Cid.of(DAG_CBOR, delegation)).encode()


def found_network(
    root_key: Ed25519PrivateKey, admission_key: Ed25519PrivateKey, members: Iterable[Member], now_ms: int
) -> tuple[bytes, tuple[bytes, ...]]:
    """Make the first roster of a network.

    Returns:
        The encoded `SignedRoster` and its pages.

    Raises:
        InputError: a member cannot be one.
        ConfigurationError: an address of a member is malformed.
    """
    delegation = delegate(root_key, public_bytes(admission_key), now_ms)
    listed = {ipns_name(member.key): member for member in map(_checked, members)}
    return _sign(admission_key, ipns_name(public_bytes(root_key)), 1, now_ms, delegation, listed, {})


def edit_roster(
    view: RosterView,
    admission_key: Ed25519PrivateKey,
    *,
    admit: Iterable[Member] = (),
    revoke: Iterable[Revocation] = (),
    now_ms: int,
    delegation: tuple[bytes, bytes] | None = None,
) -> tuple[bytes, tuple[bytes, ...]]:
    """Make the next version of a roster; a page that nothing changes keeps its CID.

    Args:
        view: the newest version.
        admission_key: the key that signs; delegated to by the view's delegation or by `delegation`.
        admit: new members, and members that change.
        revoke: who is a member no more.
        now_ms: Unix time in milliseconds.
        delegation: a newer one, as `delegate` gives it.

    Returns:
        The encoded `SignedRoster` and its pages.

    Raises:
        InputError: a member cannot be one, or a revoked key is none.
        ConfigurationError: an address of a member is malformed.
        Forbidden: a key that was revoked is to come back, or the signer may not sign (any more).
    """
    members, revoked = dict(view.members), dict(view.revoked)
    for member in map(_checked, admit):
        name = ipns_name(member.key)
        if name in revoked:
            raise Forbidden(
                f"{name} was revoked: {revoked[name].reason}", hint="a revoked key never comes back: make a new one"
            )
        members[name] = member
    for revocation in revoke:
        name = ipns_name(revocation.key)
        if name in revoked:
            continue
        if members.pop(name, None) is None:
            raise InputError(f"{name} is no member: it cannot be revoked")
        revoked[name] = revocation
    pair = delegation or (view.roster.delegation, view.roster.delegation_signature)
    chosen = Delegation.decode(pair[0])
    issued_ms = max(now_ms, view.roster.issued_ms, view.version + 1)
    if chosen.key != public_bytes(admission_key) or not chosen.not_before_ms <= issued_ms < chosen.not_after_ms:
        raise Forbidden(
            "this key may not sign the roster, or not any more",
            hint="where the network's root key lies: dim network init --renew",
        )
    return _sign(admission_key, view.network, view.version + 1, issued_ms, pair, members, revoked)


def _checked(member: Member) -> Member:
    if len(member.key) != 32:
        raise InputError(f"a member's key has 32 bytes, not {len(member.key)}")
    if not member.roles or len(set(member.roles)) != len(member.roles):
        raise InputError("a member has at least one role, and each once")
    if not member.owner or len(member.owner) > 200 or len(member.label) > 200:
        raise InputError("a member has an owner; owner and label have at most 200 characters")
    if len(member.addresses) > 8 or len(member.doors) > 8:
        raise InputError("a member has at most 8 addresses and 8 doors")
    if "orchestrator" not in member.roles and (member.ca or member.certificate or member.addresses or member.doors):
        raise InputError("only an orchestrator has a CA, a certificate, addresses and doors in the roster")
    if any(der is not None and len(der) > 2048 for der in (member.ca, member.certificate)):
        raise InputError("a certificate in the roster has at most 2 KiB")
    if member.ca is not None:
        key_identifier(member.ca)
    if member.certificate is not None and server_name(member.certificate) != ipns_name(member.key):
        raise InputError("the server's certificate does not name the member that it is entered for")
    if any(not Address.parse(each, secure=True).host for each in (*member.addresses, *member.doors)):
        raise InputError("an address in the roster is HOST:PORT")
    return member


def _is_ca(der: bytes) -> bool:
    try:
        key_identifier(der)
    except InputError:
        return False
    return True


def _sign(
    key: Ed25519PrivateKey,
    network: str,
    version: int,
    issued_ms: int,
    delegation: tuple[bytes, bytes],
    members: Mapping[str, Member],
    revoked: Mapping[str, Revocation],
) -> tuple[bytes, tuple[bytes, ...]]:
    everybody: list[Member | Revocation] = [*members.values(), *revoked.values()]
    entries = sorted(everybody, key=lambda entry: entry.key)
    pages = tuple(_pages(entries, 0))
    roster = Roster(
        network=network,
        version=version,
        issued_ms=issued_ms,
        pages=tuple(Cid.of(DAG_CBOR, page) for page in pages),
        delegation=delegation[0],
        delegation_signature=delegation[1],
    ).encode()
    signature = sign(key, ROSTER_DOMAIN, Cid.of(DAG_CBOR, roster))
    return SignedRoster(roster=roster, signature=signature.encode()).encode(), pages


def _pages(entries: Sequence[Member | Revocation], bit: int) -> Iterable[bytes]:
    """Write entries, sorted by key and equal in the bits before `bit`, as pages."""
    if not entries:
        return
    if len(entries) <= MAX_MEMBERS_PER_PAGE:
        members = tuple(entry for entry in entries if isinstance(entry, Member))
        revoked = tuple(entry for entry in entries if isinstance(entry, Revocation))
        yield RosterPage(members=members, revoked=revoked).encode()
        return
    ones = next((at for at, entry in enumerate(entries) if entry.key[bit // 8] >> (7 - bit % 8) & 1), len(entries))
    yield from _pages(entries[:ones], bit + 1)
    yield from _pages(entries[ones:], bit + 1)


def _read_pages(pages: Iterable[bytes]) -> tuple[dict[str, Member], dict[str, Revocation]]:
    members: dict[str, Member] = {}
    revoked: dict[str, Revocation] = {}
    last = b""
    for page in pages:
        if len(page) > MAX_BLOCK_BYTES:
            raise RecordForged(f"a page of the roster of {len(page)} bytes is over {MAX_BLOCK_BYTES}")
        try:
            read = RosterPage.decode(page)
        except InputError as error:
            raise RecordForged(f"a page of the roster cannot be read: {error.message}") from error
        if len(read.members) + len(read.revoked) > MAX_MEMBERS_PER_PAGE:
            raise RecordForged(f"a page of the roster holds more than {MAX_MEMBERS_PER_PAGE} entries")
        entries: list[Member | Revocation] = [*read.members, *read.revoked]
        for entry in sorted(entries, key=lambda entry: entry.key):
            if len(entry.key) != 32 or entry.key <= last:
                raise RecordForged("the roster's entries are not in the order of their keys, each once")
            last = entry.key
            if isinstance(entry, Member):
                members[ipns_name(entry.key)] = entry
            else:
                revoked[ipns_name(entry.key)] = entry
    return members, revoked
