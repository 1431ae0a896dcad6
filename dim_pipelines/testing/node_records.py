"""A network of fixed keys, and records of a node in it, for tests that need a good one to make a bad one of."""

from __future__ import annotations

from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dim_pipelines.discovery.record import make_node_record, name_of
from dim_pipelines.domain.advertisement import AdvertisedDevice, Advertisement, RecordFields, Speed
from dim_pipelines.domain.cid import RAW, Cid
from dim_pipelines.domain.roster import Member
from dim_pipelines.identity.keys import public_bytes
from dim_pipelines.identity.roster import RosterView, found_network

ROOT = Ed25519PrivateKey.from_private_bytes(b"r" * 32)
ADMISSION = Ed25519PrivateKey.from_private_bytes(b"a" * 32)
NODE = Ed25519PrivateKey.from_private_bytes(b"n" * 32)
NETWORK = name_of(ROOT)
NAME = name_of(NODE)
NOW = 1_800_000_000_000


def advertisement(**changes: Any) -> Advertisement:
    """Give an advertisement with some fields changed."""
    fields: dict[str, Any] = {
        "label": "lab-1",
        "version": "0.1.0",
        "devices": (AdvertisedDevice(id="cpu", kind="cpu", name="a processor", memory_bytes=1 << 34),),
        "numerics": {"torch": "torch-2.13/cpu"},
        "max_input_bytes": 1 << 20,
        "max_sessions": 4,
    }
    return Advertisement(**{**fields, **changes})


def fields(said: Advertisement | None = None, **changes: Any) -> RecordFields:
    """Give the fields of a record with some changed."""
    known: dict[str, Any] = {
        "network": NETWORK,
        "boot": bytes(range(16)),
        "issued_ms": NOW,
        "reach": "direct",
        "endpoints": ("192.0.2.1:7000",),
        "certificate": b"\x30" + bytes(400),
        "advertisement": (said or advertisement()).encode(),
    }
    return RecordFields(**{**known, **changes})


def node_record(sequence: int = NOW, now_ms: int = NOW, *, key: Ed25519PrivateKey = NODE, **changes: Any) -> bytes:
    """Give the bytes of a node's record."""
    return make_node_record(key, fields(**changes), sequence, now_ms)


def models(count: int) -> tuple[Cid, ...]:
    """Give CIDs of models."""
    return tuple(Cid.of(RAW, number.to_bytes(2, "big")) for number in range(count))


def speeds(count: int, numerics: str = "torch-2.13/cpu/FP32") -> tuple[Speed, ...]:
    """Give measured speeds of as many models."""
    return tuple(
        Speed(model=model, numerics=numerics, rows_per_1000_s=5, spread_per_mille=20, samples=30)
        for model in models(count)
    )


def member(key: Ed25519PrivateKey = NODE, *roles: str) -> Member:
    """Give a member: a node, when no role is named."""
    return Member(key=public_bytes(key), roles=roles or ("node",), owner="o", admitted_ms=NOW)


def roster(*members: Member) -> RosterView:
    """Give a roster; of the node alone, when nobody is named."""
    signed, pages = found_network(ROOT, ADMISSION, members or (member(),), NOW)
    return RosterView.open(signed, pages, NETWORK, NOW)
