"""The signed envelope of a hint, made and read; pure.

The signature is over `dim/bus/1`, a NUL, and the deterministically encoded message without it, so that network,
topic, sender, sequence and body are all signed, and the signature is worthless for another end.
"""

from __future__ import annotations

from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from google.protobuf.message import DecodeError

from dim_pipelines.bus.bus import MAX_BODY_BYTES, Hint
from dim_pipelines.errors import InputError, ProtocolError
from dim_pipelines.identity.keys import public_bytes
from dim_pipelines.wire.v1 import bus_pb2

MAX_MESSAGE_BYTES: Final = MAX_BODY_BYTES + (1 << 10)
"""The largest message: the body and 1 KiB for all else."""

_DOMAIN: Final = b"dim/bus/1\0"


def sign_hint(key: Ed25519PrivateKey, network: str, topic: str, sequence: int, body: bytes) -> bytes:
    """Make the bytes of a hint.

    Raises:
        InputError: the body is over 16 KiB, or network and topic are over 1 KiB together.
    """
    if len(body) > MAX_BODY_BYTES:
        raise InputError(f"the hint has {len(body)} bytes; {MAX_BODY_BYTES} is the most")
    message = bus_pb2.BusMessage(network=network, topic=topic, sender=public_bytes(key), sequence=sequence, body=body)
    message.signature = key.sign(_signed(message))
    raw = message.SerializeToString(deterministic=True)
    if len(raw) > MAX_MESSAGE_BYTES:
        raise InputError("the hint's network and topic are too long")
    return raw


def read_hint(raw: bytes, network: str, topic: str) -> Hint:
    """Check a hint's signature, and that it is for this network and topic.

    Raises:
        ProtocolError: malformed, too large, for another network or topic, or not signed by its sender.
    """
    if len(raw) > MAX_MESSAGE_BYTES:
        raise ProtocolError(f"a hint of {len(raw)} bytes; {MAX_MESSAGE_BYTES} is the most")
    try:
        message = bus_pb2.BusMessage.FromString(raw)
    except DecodeError as error:
        raise ProtocolError("a hint is no message of the bus") from error
    if message.network != network:
        raise ProtocolError(f"a hint of another network: {message.network[:80]!r}")
    if message.topic != topic:
        raise ProtocolError(f"a hint of another topic: {message.topic[:80]!r}")
    if len(message.body) > MAX_BODY_BYTES:
        raise ProtocolError(f"a hint whose body has {len(message.body)} bytes; {MAX_BODY_BYTES} is the most")
    signature = message.signature
    message.ClearField("signature")
    try:
        Ed25519PublicKey.from_public_bytes(message.sender).verify(signature, _signed(message))
    except (InvalidSignature, ValueError) as error:
        raise ProtocolError("a hint was not signed by its sender") from error
    return Hint(message.topic, message.sender, message.sequence, message.body)


def _signed(message: bus_pb2.BusMessage) -> bytes:
    return _DOMAIN + message.SerializeToString(deterministic=True)
