"""The signed envelope of hints."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from dim_pipelines.bus.bus import MAX_BODY_BYTES
from dim_pipelines.bus.message import MAX_MESSAGE_BYTES, read_hint, sign_hint
from dim_pipelines.bus.sequence import Sequence
from dim_pipelines.errors import InputError, ProtocolError
from dim_pipelines.identity.keys import public_bytes
from dim_pipelines.wire.v1 import bus_pb2

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


@given(st.text(max_size=70), st.text(max_size=20), st.integers(0, (1 << 64) - 1), st.binary(max_size=300))
def test_what_is_signed_is_what_is_read(network: str, topic: str, sequence: int, body: bytes) -> None:
    hint = read_hint(sign_hint(KEY, network, topic, sequence, body), network, topic)
    assert (hint.topic, hint.sequence, hint.body, hint.sender) == (topic, sequence, body, public_bytes(KEY))


@pytest.mark.parametrize(
    "field", [{"network": "m"}, {"topic": "roster"}, {"sequence": 6}, {"body": b"x"}, {"sender": bytes(32)}]
)
def test_every_field_is_signed(field: dict[str, object]) -> None:
    message = bus_pb2.BusMessage.FromString(sign_hint(KEY, "n", "nodes", 5, b"body"))
    for name, value in field.items():
        setattr(message, name, value)
    with pytest.raises(ProtocolError):
        read_hint(message.SerializeToString(), message.network, message.topic)


def test_an_unknown_field_is_not_signed_so_it_is_refused() -> None:
    with pytest.raises(ProtocolError, match="not signed"):
        read_hint(sign_hint(KEY, "n", "nodes", 5, b"body") + b"\xfa\x01\x01x", "n", "nodes")


def test_a_hint_for_elsewhere_is_refused() -> None:
    raw = sign_hint(KEY, "n", "nodes", 5, b"body")
    with pytest.raises(ProtocolError, match="another network"):
        read_hint(raw, "m", "nodes")
    with pytest.raises(ProtocolError, match="another topic"):
        read_hint(raw, "n", "roster")


@pytest.mark.parametrize("sender", [b"", b"short", bytes(31), bytes(33)])
def test_a_sender_that_is_no_key_is_refused(sender: bytes) -> None:
    message = bus_pb2.BusMessage(network="n", topic="nodes", sender=sender, sequence=1, signature=bytes(64))
    with pytest.raises(ProtocolError):
        read_hint(message.SerializeToString(), "n", "nodes")


@given(st.binary(max_size=300))
def test_garbage_is_refused(raw: bytes) -> None:
    with pytest.raises(ProtocolError):
        read_hint(raw, "n", "nodes")


def test_every_cut_is_refused() -> None:
    raw = sign_hint(KEY, "n", "nodes", 5, b"body")
    for length in range(len(raw)):
        with pytest.raises(ProtocolError):
            read_hint(raw[:length], "n", "nodes")


def test_sizes_are_bounded_on_both_ends() -> None:
    assert len(sign_hint(KEY, "n", "nodes", 5, bytes(MAX_BODY_BYTES))) <= MAX_MESSAGE_BYTES
    with pytest.raises(InputError):
        sign_hint(KEY, "n", "nodes", 5, bytes(MAX_BODY_BYTES + 1))
    with pytest.raises(InputError):
        sign_hint(KEY, "n" * 2_000, "nodes", 5, bytes(MAX_BODY_BYTES))
    with pytest.raises(ProtocolError, match="is the most"):
        read_hint(bytes(MAX_MESSAGE_BYTES + 1), "n", "nodes")


def test_sequences_grow_whatever_the_clock_does() -> None:
    clock = iter([10, 10, 5, 20, 20])
    sequence = Sequence(lambda: next(clock))
    assert [sequence.next() for _ in range(5)] == [10, 11, 12, 20, 21]
