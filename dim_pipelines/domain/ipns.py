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
_PAIRS: Final = tuple(high + low for high in _ALPHABET for low in _ALPHABET)
"""Two digits at a time: every record that is verified asks for a name or two."""


def ipns_name(public: bytes) -> str:
    """Name a public key (32 bytes): `k51…`, 62 characters."""
    number = int.from_bytes(_PREFIX + public, "big")
    pairs: list[str] = []
    while number:
        number, pair = divmod(number, 36 * 36)
        pairs.append(_PAIRS[pair])
    return "k" + "".join(reversed(pairs)).lstrip("0")


def public_of(name: str) -> bytes:
    """Give the public key (32 bytes) that a name is, with or without `/ipns/` before it.

    Raises:
        InputError: not the base36 name of an Ed25519 key.
    """
    body = name.removeprefix("/ipns/")
    if len(body) > _LONGEST or not body.startswith("k") or not set(body[1:]) <= set(_ALPHABET) or len(body) < 2:
        raise InputError(f"not an IPNS name: {name[:_LONGEST]!r}", hint="it looks like k51… and has 62 characters")
    raw = int(body[1:], 36).to_bytes(_LONGEST, "big").lstrip(b"\0")
    # The number has one spelling but for zeros before it.
    if len(raw) != 40 or not raw.startswith(_PREFIX) or body[1] == "0":
        raise InputError(f"not the IPNS name of an Ed25519 key: {name[:_LONGEST]!r}")
    return raw[8:]
