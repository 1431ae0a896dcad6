"""Invite strings and requests to join: cut short, wrong, expired and replayed are each told apart."""

from __future__ import annotations

from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import example, given
from hypothesis import strategies as st

from dim_pipelines.domain.ipns import ipns_name
from dim_pipelines.domain.roster import Invite
from dim_pipelines.errors import DimError, Forbidden, InputError, QuotaExceeded, Unauthenticated
from dim_pipelines.identity.invites import MAX_CHARACTERS, format_invite, parse_invite
from dim_pipelines.identity.join_requests import SKEW_MS, Nonces, join_request, verify_join
from dim_pipelines.identity.keys import public_bytes
from dim_pipelines.wire.v1 import orchestrator_pb2

KEY, OTHER = (Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32) for n in (4, 5))
NETWORK = ipns_name(public_bytes(OTHER))
NOW = 1_800_000_000_000
INVITE = Invite(
    network=NETWORK,
    doors=("10.0.0.1:7000", "[fd00::1]:7000"),
    certificates=(bytes(32), bytes([1]) * 32),
    id="a1b2",
    secret=bytes(range(32)),
    roles=("node",),
    not_after_ms=NOW,
)
TEXT = format_invite(INVITE)
SPKI = (
    ec.derive_private_key(7, ec.SECP256R1())
    .public_key()
    .public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
)


class TestInvites:
    def test_an_invite_is_read_as_it_was_written_also_out_of_a_mail(self) -> None:
        assert parse_invite(TEXT) == INVITE
        assert parse_invite("  " + "\r\n ".join(TEXT[at : at + 60] for at in range(0, len(TEXT), 60)) + "\n") == INVITE
        assert TEXT.startswith("dim1-") and len(TEXT) < 600

    def test_every_cut_and_every_changed_character_is_told(self) -> None:
        for size in range(len(TEXT)):
            with pytest.raises(InputError) as caught:
                parse_invite(TEXT[:size])
            assert "no invite" in caught.value.message or "cut short" in caught.value.message
            if size > 5:
                assert "cut short" in caught.value.message and "whole line" in caught.value.hint
        for at in range(len("dim1-"), len(TEXT), 5):
            other = "A" if TEXT[at] != "A" else "B"
            with pytest.raises(InputError):
                parse_invite(TEXT[:at] + other + TEXT[at + 1 :])

    def test_an_expired_one_says_when_it_ended(self) -> None:
        assert parse_invite(TEXT, NOW - 1) == INVITE
        with pytest.raises(Forbidden, match=r"expired at 2027-01-15 08:00 UTC") as caught:
            parse_invite(TEXT, NOW)
        assert "dim network invite" in caught.value.hint

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "no invite"),
            ("hello", "no invite"),
            ("dim2-AAAA", "another version of DIM"),
            ("dim1-", "cut short"),
            ("dim1-A", "cut short"),
            ("dim1-ä", "holds characters"),
            ("dim1-" + "A" * MAX_CHARACTERS, "too long"),
        ],
    )
    def test_what_is_none_is_told(self, text: str, message: str) -> None:
        with pytest.raises(InputError, match=message):
            parse_invite(text)

    @pytest.mark.parametrize(
        "fields",
        [
            {"doors": ()},
            {"certificates": (bytes(32),)},
            {"certificates": (bytes(32), bytes(31))},
            {"secret": b"short"},
            {"roles": ()},
            {"id": ""},
            {"id": "x" * 41},
            {"network": "k51"},
            {"not_after_ms": 1 << 60},
            {"doors": ("x" * 4000, "y")},
        ],
    )
    def test_one_that_could_not_be_used_is_not_written(self, fields: dict[str, Any]) -> None:
        with pytest.raises(InputError):
            format_invite(INVITE.model_copy(update=fields))

    @given(st.text() | st.text("dim1-ABCabc_09").map(lambda text: "dim1-" + text))
    def test_any_text_is_an_invite_or_an_input_error(self, text: str) -> None:
        with pytest.raises(InputError):
            parse_invite(text)


def request(**changes: Any) -> orchestrator_pb2.JoinRequest:
    return join_request(KEY, NETWORK, SPKI, now_ms=NOW, invite="a1b2", secret=bytes(32), label="lab", **changes)


class TestRequests:
    def test_a_good_one_passes_within_ten_minutes(self) -> None:
        for off in (0, SKEW_MS - 1, 1 - SKEW_MS):
            verify_join(request(), NOW + off)

    @pytest.mark.parametrize(("off", "word"), [(SKEW_MS, "behind"), (-SKEW_MS, "ahead")])
    def test_a_clock_ten_minutes_off_is_refused_and_named(self, off: int, word: str) -> None:
        with pytest.raises(Unauthenticated, match=f"600 s {word}") as caught:
            verify_join(request(), NOW + off)
        assert "NTP" in caught.value.hint

    def test_no_field_can_be_changed(self) -> None:
        changes: dict[str, Any] = {
            "network": ipns_name(public_bytes(KEY)), "invite": "other", "secret": b"", "label": "mine",
            "issued_ms": NOW + 1, "nonce": bytes(16), "key": public_bytes(OTHER), "public_key": SPKI + b"\0",
            "signature": bytes(64),
        }  # fmt: skip
        signed = {field.name for field in orchestrator_pb2.JoinRequest.DESCRIPTOR.fields}
        assert signed == set(changes) | {"server"}
        for field, value in changes.items():
            changed = request()
            setattr(changed, field, value)
            with pytest.raises(Unauthenticated, match="not signed by its key"):
                verify_join(changed, NOW)
        changed = request()
        changed.server.addresses.append("10.0.0.1:1")
        with pytest.raises(Unauthenticated, match="not signed by its key"):
            verify_join(changed, NOW)

    @pytest.mark.parametrize(
        "change",
        [
            lambda it: setattr(it, "key", bytes(31)),
            lambda it: setattr(it, "nonce", bytes(15)),
            lambda it: setattr(it, "label", "x" * 201),
            lambda it: setattr(it, "label", "two\nlines"),
            lambda it: setattr(it, "invite", "x" * 41),
            lambda it: setattr(it, "secret", bytes(65)),
            lambda it: setattr(it, "network", "k51"),
        ],
    )
    def test_malformed_ones_are_refused_before_their_signature(self, change: Any) -> None:
        made = request()
        change(made)
        with pytest.raises(InputError):
            verify_join(made, NOW)

    def test_the_client_key_is_p256(self) -> None:
        ed = OTHER.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        p384 = ec.derive_private_key(7, ec.SECP384R1()).public_key()
        odd = p384.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        for spki in (ed, odd, b"", b"garbage"):
            with pytest.raises(InputError, match=r"P-256|not the public key"):
                verify_join(join_request(KEY, NETWORK, spki, now_ms=NOW), NOW)

    @given(st.binary(max_size=300))
    @example(b"")
    def test_any_bytes_are_refused_as_what_they_are(self, data: bytes) -> None:
        made = orchestrator_pb2.JoinRequest()
        try:
            made.ParseFromString(data)
        except Exception:
            return
        with pytest.raises(DimError):
            verify_join(made, NOW)


class TestNonces:
    def test_a_request_is_taken_once(self) -> None:
        nonces, first = Nonces(), request()
        nonces.take(first, NOW)
        with pytest.raises(Unauthenticated, match="made before"):
            nonces.take(first, NOW + 2 * SKEW_MS - 1)
        nonces.take(request(), NOW)

    def test_memory_is_bounded_and_freed_when_a_request_is_too_old_to_pass(self) -> None:
        nonces = Nonces(most=3)
        for _ in range(3):
            nonces.take(request(), NOW)
        with pytest.raises(QuotaExceeded, match="too many"):
            nonces.take(request(), NOW + 1)
        nonces.take(request(), NOW + 2 * SKEW_MS)
        assert len(nonces._seen) == 1
