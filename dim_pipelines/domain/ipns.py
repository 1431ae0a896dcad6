"""IPNS names of Ed25519 keys: the name is the key (CIDv1, libp2p-key, identity multihash, base36).

Source: https://specs.ipfs.tech/ipns/ipns-record/ (IPNS name) and the libp2p peer-id spec (identity multihash of the
protobuf-encoded public key).
"""

from __future__ import annotations

from typing import Final

from dim_pipelines.errors import InputError

_ALPHABET: Final = "0123456789abcdefghijklmnopqrstuvwxyz"
_PREFIX: Final = b"\x01\x72\x00\x24\x08\x01\x12\x20"
"""CIDv1, libp2p-key, identity multihash of 36 bytes, PublicKey{Type: Ed25519, Data: 32 bytes}."""
_LONGEST: Final = 80


def ipns_name(public: bytes) -> str:
    """Name a public key (32 bytes): `k51…`, 62 characters."""
    number = int.from_bytes(_PREFIX + public, "big")
    digits: list[str] = []
    while number:
        number, digit = divmod(number, 36)
        digits.append(_ALPHABET[digit])
    return "k" + "".join(reversed(digits))


def public_of(name: str) -> bytes:
    """Give the public key (32 bytes) that a name is, with or without `/ipns/` before it.

    Raises:
        InputError: not the base36 name of an Ed25519 key.
    """
    body = name.removeprefix("/ipns/")
    if len(body) > _LONGEST or not body.startswith("k") or not set(body[1:]) <= set(_ALPHABET) or len(body) < 2:
        raise InputError(f"not an IPNS name: {name[:_LONGEST]!r}", hint="it looks like k51… and has 62 characters")
    raw = int(body[1:], 36).to_bytes(_LONGEST, "big").lstrip(b"\0")
    if len(raw) != 40 or not raw.startswith(_PREFIX) or ipns_name(raw[8:]) != body:
        raise InputError(f"not the IPNS name of an Ed25519 key: {name[:_LONGEST]!r}")
    return raw[8:]
