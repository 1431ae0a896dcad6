"""Rosters: only what the root's delegate signed is opened, nothing older is accepted, an edit changes few pages."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from dim_pipelines.domain.cid import DAG_CBOR, Cid
from dim_pipelines.domain.grant import Signature
from dim_pipelines.domain.ipns import ipns_name
from dim_pipelines.domain.roster import (
    MAX_MEMBERS_PER_PAGE,
    Delegation,
    Member,
    Revocation,
    Roster,
    RosterPage,
    SignedRoster,
)
from dim_pipelines.errors import (
    ConfigurationError,
    ContentNotFound,
    DimError,
    Forbidden,
    InputError,
    RecordExpired,
    RecordForged,
    RolledBack,
)
from dim_pipelines.identity import roster as roster_module
from dim_pipelines.identity.certificates import key_identifier
from dim_pipelines.identity.guard import RosterGuard
from dim_pipelines.identity.keys import public_bytes
from dim_pipelines.identity.p256 import build_certificate
from dim_pipelines.identity.roster import (
    DELEGATION_DOMAIN,
    MAX_BLOCK_BYTES,
    ROSTER_DOMAIN,
    SKEW_MS,
    RosterView,
    accept,
    delegate,
    edit_roster,
    found_network,
)
from dim_pipelines.identity.signatures import sign
from dim_pipelines.wire.access import Peer

ROOT, ADMISSION, OTHER = (Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32) for n in (1, 2, 3))
NETWORK = ipns_name(public_bytes(ROOT))
NOW = 1_800_000_000_000
DAY = 86_400_000


def ca_certificate(key: Any = None, *, signer: Any = None, identifier: bytes = b"") -> bytes:
    """DER of a CA; each of the arguments makes one that is none for a roster."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    own = x509.SubjectKeyIdentifier(identifier) if identifier else None
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "CA")])
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
        .add_extension(own or x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        .sign(signer or key, hashes.SHA256())
        .public_bytes(serialization.Encoding.DER)
    )


def server_certificate(name: str) -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    made = build_certificate(key, x509.Name([]), key, x509.Name([]), x509.DNSName(name), days=1)
    return made.public_bytes(serialization.Encoding.DER)


CA = ca_certificate()


def key(number: int) -> bytes:
    """A public key that nobody needs to sign with; spread as real ones are."""
    return Cid.of(DAG_CBOR, b"%d" % number).digest


def member(number: int, *roles: Any, **fields: Any) -> Member:
    return Member(key=key(number), roles=roles or ("node",), owner="owner", admitted_ms=NOW, **fields)


def name(number: int) -> str:
    return ipns_name(key(number))


def revocation(number: int) -> Revocation:
    return Revocation(key=key(number), reason="lost", revoked_ms=NOW)


def view(*members: Member, now_ms: int = NOW) -> RosterView:
    signed, pages = found_network(ROOT, ADMISSION, members, now_ms)
    return RosterView.open(signed, pages, NETWORK, now_ms)


def edited(before: RosterView, **changes: Any) -> RosterView:
    signed, pages = edit_roster(before, ADMISSION, now_ms=NOW, **changes)
    return RosterView.open(signed, pages, NETWORK, NOW)


class TestOpening:
    def test_members_are_found_by_name_and_role_and_the_others_refused_with_the_reason(self) -> None:
        made = edited(view(member(1), member(2, "orchestrator", "node")), revoke=[revocation(1)])
        assert made.member(name(2)).key == key(2) and list(made.members) == [name(2)]
        assert [found.key for found in made.with_role("node")] == [key(2)] and not made.with_role("user")
        with pytest.raises(Forbidden, match="was revoked: lost"):
            made.member(name(1))
        with pytest.raises(Forbidden, match="no member"):
            made.member(name(3))

    def test_the_cas_are_those_of_orchestrators(self) -> None:
        made = view(member(1, "orchestrator", ca=CA), member(2, "orchestrator"), member(3))
        assert made.client_cas() == [CA]

    def test_a_ca_that_is_none_shuts_nobody_else_out(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """An older version, or another program, may have signed it."""
        guard = RosterGuard(view())
        with monkeypatch.context() as patch:
            patch.setattr(roster_module, "_checked", lambda member: member)
            made = view(member(1, "orchestrator", ca=b"CA one"), member(2, "orchestrator", ca=CA), member(3))
        guard.renew(made)
        assert made.client_cas() == [CA]
        guard.check(Peer(NETWORK, "node", name(3), key_identifier(CA)))
        with pytest.raises(Forbidden, match="no more"):
            guard.check(Peer(NETWORK, "node", name(3), b"another"))

    def test_another_networks_roster_is_refused(self) -> None:
        signed, pages = found_network(OTHER, ADMISSION, [], NOW)
        with pytest.raises(RecordForged, match="another network"):
            RosterView.open(signed, pages, NETWORK, NOW)

    def test_a_missing_page_is_named_and_pages_come_in_any_order(self) -> None:
        signed, pages = found_network(ROOT, ADMISSION, [member(n) for n in range(600)], NOW)
        assert len(pages) > 2
        assert RosterView.open(signed, [b"another", *reversed(pages)], NETWORK, NOW).pages == pages
        with pytest.raises(ContentNotFound, match=str(Cid.of(DAG_CBOR, pages[1]))):
            RosterView.open(signed, (pages[0], *pages[2:]), NETWORK, NOW)

    def test_the_delegation_ends_for_new_rosters_and_the_last_one_known_stays(self) -> None:
        made = view()
        late = NOW + 30 * DAY
        assert RosterView.open(made.signed, made.pages, NETWORK, late - 1).version == 1
        with pytest.raises(RecordExpired, match="permission to sign rosters has ended"):
            RosterView.open(made.signed, made.pages, NETWORK, late)
        assert RosterView.open(made.signed, made.pages, NETWORK, None).version == 1

    def test_a_clock_ten_minutes_behind_refuses_and_says_so(self) -> None:
        made = view()
        assert RosterView.open(made.signed, made.pages, NETWORK, NOW - SKEW_MS + 1).version == 1
        with pytest.raises(RecordForged, match="600 s in the future") as caught:
            RosterView.open(made.signed, made.pages, NETWORK, NOW - SKEW_MS)
        assert "clock" in caught.value.hint

    @pytest.mark.parametrize("changed", ["signed", "page"])
    @settings(max_examples=60)
    @given(data=st.data())
    def test_no_changed_byte_is_accepted(self, changed: str, data: st.DataObject) -> None:
        made = view(member(1, "orchestrator"), member(2))
        target = bytearray(made.signed if changed == "signed" else made.pages[0])
        at = data.draw(st.integers(0, len(target) - 1))
        target[at] ^= data.draw(st.integers(1, 255))
        signed, page = (bytes(target), made.pages[0]) if changed == "signed" else (made.signed, bytes(target))
        with pytest.raises((RecordForged, ContentNotFound)):
            RosterView.open(signed, [page], NETWORK, NOW)

    @given(st.binary(max_size=200))
    def test_garbage_is_forged(self, garbage: bytes) -> None:
        with pytest.raises(RecordForged):
            RosterView.open(garbage, [], NETWORK, NOW)

    def test_every_cut_is_forged_and_what_is_oversized_too(self) -> None:
        made = view(member(1))
        for size in range(0, len(made.signed), 7):
            with pytest.raises(RecordForged):
                RosterView.open(made.signed[:size], made.pages, NETWORK, NOW)
        with pytest.raises(RecordForged, match="is over"):
            RosterView.open(made.signed + bytes(MAX_BLOCK_BYTES), made.pages, NETWORK, NOW)


def forge(
    *,
    delegator: Ed25519PrivateKey = ROOT,
    delegated: bytes | None = None,
    signer: Ed25519PrivateKey = ADMISSION,
    delegation_domain: str = DELEGATION_DOMAIN,
    roster_domain: str = ROSTER_DOMAIN,
    version: int = 1,
    issued_ms: int = NOW,
    pages: tuple[bytes, ...] = (),
    change: Callable[[SignedRoster], SignedRoster] = lambda signed: signed,
) -> tuple[bytes, tuple[bytes, ...]]:
    delegation = Delegation(
        network=NETWORK, key=delegated or public_bytes(ADMISSION), not_before_ms=NOW, not_after_ms=NOW + DAY
    ).encode()
    roster = Roster(
        network=NETWORK,
        version=version,
        issued_ms=issued_ms,
        pages=tuple(Cid.of(DAG_CBOR, page) for page in pages),
        delegation=delegation,
        delegation_signature=sign(delegator, delegation_domain, Cid.of(DAG_CBOR, delegation)).encode(),
    ).encode()
    signature = sign(signer, roster_domain, Cid.of(DAG_CBOR, roster)).encode()
    return change(SignedRoster(roster=roster, signature=signature)).encode(), pages


def page(*entries: Member | Revocation) -> bytes:
    return RosterPage(
        members=tuple(entry for entry in entries if isinstance(entry, Member)),
        revoked=tuple(entry for entry in entries if isinstance(entry, Revocation)),
    ).encode()


FORGERIES: dict[str, tuple[dict[str, Any], str]] = {
    "delegated by another key": ({"delegator": OTHER}, "not delegated to by the network's root"),
    "signed by a stranger": ({"signer": OTHER}, "signed by a key that may not sign"),
    "signed by the root itself": ({"signer": ROOT}, "signed by a key that may not sign"),
    "a delegation to another": ({"delegated": public_bytes(OTHER)}, "signed by a key that may not sign"),
    "a signature for another end": ({"roster_domain": DELEGATION_DOMAIN}, "signature does not hold"),
    "a delegation for another end": ({"delegation_domain": ROSTER_DOMAIN}, "signature does not hold"),
    "issued before its delegation": ({"issued_ms": NOW - 1}, "outside of its signer's time"),
    "issued after its delegation": ({"issued_ms": NOW + DAY}, "outside of its signer's time"),
    "version zero": ({"version": 0}, "cannot have version 0"),
    "a version that uses the numbers up": ({"version": NOW + 1}, "cannot have version"),
    "a page of garbage": ({"pages": (b"garbage",)}, "page of the roster cannot be read"),
    "a page that is too large": ({"pages": (bytes(MAX_BLOCK_BYTES + 1),)}, "is over"),
    "a page with too many": (
        {"pages": (page(*(member(n) for n in range(MAX_MEMBERS_PER_PAGE + 1))),)},
        "more than 256 entries",
    ),
    "a member twice": ({"pages": (page(member(1)), page(member(1, "user")))}, "each once"),
    "a revoked member": ({"pages": (page(member(1), revocation(1)),)}, "each once"),
    "a short key": ({"pages": (page(member(1).model_copy(update={"key": b"short"})),)}, "each once"),
}


@pytest.mark.parametrize("what", FORGERIES)
def test_forgeries_are_refused_each_with_its_reason(what: str) -> None:
    fields, reason = FORGERIES[what]
    late = fields.get("issued_ms", NOW) if fields.get("issued_ms", NOW) < NOW + DAY else NOW
    signed, pages = forge(**fields)
    with pytest.raises(RecordForged, match=reason):
        RosterView.open(signed, pages, NETWORK, max(NOW, late))


def test_what_the_forgeries_are_made_from_is_no_forgery() -> None:
    signed, pages = forge(pages=(page(member(1)),))
    assert name(1) in RosterView.open(signed, pages, NETWORK, NOW).members


def test_a_signature_that_names_another_key_is_refused() -> None:
    def change(signed: SignedRoster) -> SignedRoster:
        signature = Signature.decode(signed.signature).model_copy(update={"key": public_bytes(OTHER)})
        return SignedRoster(roster=signed.roster, signature=signature.encode())

    with pytest.raises(RecordForged, match="does not hold"):
        RosterView.open(*forge(change=change), NETWORK, NOW)


class TestAccepting:
    def test_newer_is_taken_the_same_is_dropped_older_and_twins_are_refused(self) -> None:
        first = view(member(1))
        second = edited(first, admit=[member(2)])
        twin = edited(first, admit=[member(3)])
        assert accept(None, first) and accept(first, second) and not accept(second, second)
        with pytest.raises(RolledBack, match="version 1 is older than 2"):
            accept(second, first)
        with pytest.raises(RolledBack, match="two rosters of version 2"):
            accept(second, twin)

    def test_a_key_that_was_replaced_signs_no_more(self) -> None:
        """A stolen admission key loses its power with the next delegation, before its own has ended."""
        first = view(member(1))
        stolen = edited(first, admit=[member(66)])
        fresh = delegate(ROOT, public_bytes(OTHER), NOW + 1000)
        signed, pages = edit_roster(first, OTHER, delegation=fresh, now_ms=NOW + 1000)
        mended = RosterView.open(signed, pages, NETWORK, NOW + 1000)
        assert accept(first, mended)
        late = edited(edited(stolen, admit=[member(67)]), admit=[member(68)])
        assert late.version > mended.version
        with pytest.raises(RolledBack, match="older permission"):
            accept(mended, late)

    @settings(max_examples=40)
    @given(st.lists(st.integers(0, 11), max_size=30))
    def test_no_sequence_lowers_the_version_that_holds(self, order: list[int]) -> None:
        current: RosterView | None = None
        highest = 0
        for number in order:
            offered = CHAINS[number]
            try:
                if accept(current, offered):
                    current = offered
            except RolledBack:
                pass
            assert current is not None and current.version >= highest
            highest = current.version
        if order:
            assert highest == max(CHAINS[number].version for number in order)


def _chains() -> list[RosterView]:
    """Two rosters of each version from 1 to 6, one history each."""
    chains: list[RosterView] = []
    for history in range(2):
        made = view(member(history))
        for step in range(6):
            chains.append(made)
            made = edited(made, admit=[member(100 * history + step)])
    return chains


CHAINS = _chains()


class TestEditing:
    def test_an_edit_changes_the_page_of_its_member_alone(self) -> None:
        first = view(*(member(n) for n in range(2000)))
        assert 8 <= len(first.pages) <= 32
        for changes in ({"admit": [member(5, "user")]}, {"revoke": [revocation(5)]}):
            after = edited(first, **changes)
            assert len(set(after.pages) - set(first.pages)) == 1
            assert len(set(first.pages) - set(after.pages)) == 1

    @settings(max_examples=25)
    @given(st.permutations(range(12)), st.integers(1, 11))
    def test_equal_rosters_have_equal_pages_whatever_their_history(self, order: list[int], parts: int) -> None:
        at_once = view(*(member(n) for n in range(12)))
        grown = view()
        for begin in range(0, 12, parts):
            grown = edited(grown, admit=[member(n) for n in order[begin : begin + parts]])
        assert grown.pages == at_once.pages

    def test_pages_split_and_stay_within_their_size(self) -> None:
        for count in (0, 1, 256, 257, 1000):
            made = view(*(member(n) for n in range(count)))
            assert len(made.members) == count
            assert all(len(RosterPage.decode(data).members) <= MAX_MEMBERS_PER_PAGE for data in made.pages)
        # Keys that somebody chose to share their first bits make deeper splits, no larger pages.
        near = [member(0).model_copy(update={"key": b"\xaa" * 30 + n.to_bytes(2, "big")}) for n in range(600)]
        assert len(view(*near).members) == 600

    def test_a_revoked_key_never_comes_back_and_a_stranger_cannot_be_revoked(self) -> None:
        revoked = edited(view(member(1)), revoke=[revocation(1)])
        with pytest.raises(Forbidden, match="was revoked") as caught:
            edited(revoked, admit=[member(1)])
        assert "never comes back" in caught.value.hint
        with pytest.raises(InputError, match="is no member"):
            edited(revoked, revoke=[revocation(9)])
        again = edited(revoked, revoke=[revocation(1).model_copy(update={"reason": "another"})])
        assert again.revoked[name(1)].reason == "lost"

    def test_a_key_that_may_not_sign_or_not_any_more_is_told(self) -> None:
        made = view(member(1))
        with pytest.raises(Forbidden, match="may not sign"):
            edit_roster(made, OTHER, admit=[member(2)], now_ms=NOW)
        with pytest.raises(Forbidden, match="not any more") as caught:
            edit_roster(made, ADMISSION, admit=[member(2)], now_ms=NOW + 30 * DAY)
        assert "root key" in caught.value.hint
        fresh = delegate(ROOT, public_bytes(OTHER), NOW + 30 * DAY)
        signed, pages = edit_roster(made, OTHER, admit=[member(2)], delegation=fresh, now_ms=NOW + 30 * DAY)
        assert accept(made, RosterView.open(signed, pages, NETWORK, NOW + 31 * DAY))

    def test_a_clock_that_went_back_still_makes_a_newer_roster(self) -> None:
        first = view(member(1))
        signed, pages = edit_roster(first, ADMISSION, admit=[member(2)], now_ms=NOW - DAY)
        assert accept(first, RosterView.open(signed, pages, NETWORK, NOW))

    @pytest.mark.parametrize(
        "fields",
        [
            {"key": bytes(31)},
            {"roles": ()},
            {"roles": ("node", "node")},
            {"owner": ""},
            {"owner": "x" * 201},
            {"label": "x" * 201},
            {"addresses": ("127.0.0.1:1",)},
            {"ca": b"CA"},
            {"roles": ("orchestrator",), "addresses": ("127.0.0.1:1",) * 9},
            {"roles": ("orchestrator",), "certificate": bytes(2049)},
            {"roles": ("orchestrator",), "certificate": b"garbage"},
            {"roles": ("orchestrator",), "certificate": server_certificate("another")},
            {"roles": ("orchestrator",), "ca": b"garbage"},
            {"roles": ("orchestrator",), "ca": server_certificate(ipns_name(key(1)))},
            {"roles": ("orchestrator",), "ca": ca_certificate(identifier=b"another's")},
            {"roles": ("orchestrator",), "ca": ca_certificate(ec.generate_private_key(ec.SECP384R1()))},
            {"roles": ("orchestrator",), "ca": ca_certificate(signer=ec.generate_private_key(ec.SECP256R1()))},
            {"roles": ("orchestrator",), "addresses": ("unix:/tmp/x",)},
            {"roles": ("orchestrator",), "doors": ("nowhere",)},
        ],
    )
    def test_who_cannot_be_a_member_is_not_signed_for(self, fields: dict[str, Any]) -> None:
        with pytest.raises((InputError, ConfigurationError)):
            edited(view(), admit=[member(1).model_copy(update=fields)])

    def test_an_orchestrator_with_a_server_is_signed_for(self) -> None:
        made = member(
            1, "orchestrator", ca=CA, certificate=server_certificate(name(1)), addresses=("[::1]:7",), doors=("h:8",)
        )
        assert edited(view(), admit=[made]).member(name(1)) == made


@settings(max_examples=40)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 8)), max_size=20))
def test_any_sequence_of_edits_is_what_a_dictionary_says(edits: list[tuple[bool, int]]) -> None:
    current, members, revoked = view(), set[str](), set[str]()
    for admits, number in edits:
        try:
            current = edited(current, **({"admit": [member(number)]} if admits else {"revoke": [revocation(number)]}))
        except DimError:
            assert name(number) in revoked if admits else name(number) not in members | revoked
            continue
        (members if admits else revoked).add(name(number))
        members -= revoked
    assert set(current.members) == members and set(current.revoked) == revoked
