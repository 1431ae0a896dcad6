"""IPNS records: signed, verified, and those of nodes made and read; pure.

A record is the signed statement of the key that its name is. The signature covers the dag-cbor map in its field
`data`; DIM's own fields stand there under `_dim`. Sources: https://specs.ipfs.tech/ipns/ipns-record/ (record
creation, verification, extensible data) and DESIGN 8.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import ValidationError

from dim_pipelines.discovery import entry
from dim_pipelines.discovery.names import MAX_RECORD_BYTES
from dim_pipelines.domain.advertisement import Advertisement, RecordFields
from dim_pipelines.domain.cid import DAG_CBOR, Cid
from dim_pipelines.domain.format import decode_cbor, encode_cbor
from dim_pipelines.domain.ipns import ipns_name, public_of
from dim_pipelines.errors import ConfigurationError, InputError, RecordForged
from dim_pipelines.identity.keys import public_bytes
from dim_pipelines.wire.address import Address

LIFETIME_MS: Final = 180_000
"""How long a node's record is valid: three publishing intervals."""
TTL_NS: Final = 10_000_000_000
"""How long a resolver may answer from its cache."""
MAX_SEQUENCE: Final = (1 << 63) - 1
"""The largest sequence of a node's record: what a signed 64-bit column holds."""

_SIGNED: Final = b"ipns-signature:"
_OWN: Final = "_dim"
_STANDARD: Final = frozenset({"TTL", "Value", "Sequence", "Validity", "ValidityType"})
_EOL: Final = 0
_TIME: Final = re.compile(rb"([0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2})(?:\.([0-9]{1,9}))?Z")
_UNSIGNED_64: Final = 1 << 64
_MOST_PLACES: Final = 16
_ENDPOINT: Final = re.compile(r"[!-~]{1,255}:[0-9]{1,5}")
_DAY_MIN: Final = 1440
_COPIES: Final = {
    entry.VALUE: "Value",
    entry.VALIDITY_TYPE: "ValidityType",
    entry.VALIDITY: "Validity",
    entry.SEQUENCE: "Sequence",
    entry.TTL: "TTL",
}
_KEY_PREFIX: Final = b"\x08\x01\x12\x20"
"""libp2p's PublicKey{Type: Ed25519, Data: 32 bytes}."""


@dataclass(frozen=True, slots=True)
class IpnsRecord:
    """A record whose signature was checked; whether it has expired was not.

    Attributes:
        name: the IPNS name whose key signed it.
        value: what the name points to, such as `/ipfs/CID`.
        sequence: grows with each record of the name.
        expires_ms: Unix time in milliseconds at which it ends.
        ttl_ns: how long a cache may keep it, in nanoseconds.
        extra: the signed fields under `_dim`; empty where there are none.
        raw: the bytes of the record.
        digest: SHA-256 of the signed bytes: two records are the same where these are, whatever stands unsigned
            beside them.
    """

    name: str
    value: str
    sequence: int
    expires_ms: int
    ttl_ns: int
    extra: Mapping[str, Any]
    raw: bytes
    digest: bytes


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """What a node says of itself, as its key signed it.

    Attributes:
        name: the node's IPNS name.
        key: its Ed25519 public key, 32 bytes.
        sequence: as in `IpnsRecord`.
        expires_ms: as in `IpnsRecord`.
        fields: DIM's own fields.
        advertisement: the advertisement in the fields, whose CID the record's value is.
        raw: the bytes of the record.
        digest: as in `IpnsRecord`.
    """

    name: str
    key: bytes
    sequence: int
    expires_ms: int
    fields: RecordFields
    advertisement: Advertisement
    raw: bytes
    digest: bytes


def sign_record(
    key: Ed25519PrivateKey,
    value: str,
    sequence: int,
    validity_ms: int,
    ttl_ns: int,
    extra: Mapping[str, Any] | None = None,
) -> bytes:
    """Make a record with both signatures, V2 and the older V1.

    Args:
        key: whose name it is for.
        value: what the name points to, such as `/ipfs/CID`.
        sequence: 0 to 2^64 - 1.
        validity_ms: Unix time in milliseconds at which it ends.
        ttl_ns: how long a cache may keep it, in nanoseconds.
        extra: DIM's own fields, signed under `_dim`.

    Raises:
        InputError: a number is out of range, or the record would be over 10 KiB.
    """
    if not 0 <= sequence < _UNSIGNED_64 or not 0 <= ttl_ns < 1 << 63:
        raise InputError(f"sequence {sequence} or TTL {ttl_ns} is out of range")
    pointed, validity = value.encode(), _write_time(validity_ms)
    fields: dict[str, Any] = {
        "TTL": ttl_ns,
        "Value": pointed,
        "Sequence": sequence,
        "Validity": validity,
        "ValidityType": _EOL,
    }
    data = encode_cbor(fields if extra is None else {**fields, _OWN: dict(extra)})
    raw = entry.write_entry(
        {
            entry.VALUE: pointed,
            entry.SIGNATURE_V1: key.sign(pointed + validity + b"0"),
            entry.VALIDITY_TYPE: _EOL,
            entry.VALIDITY: validity,
            entry.SEQUENCE: sequence,
            entry.TTL: ttl_ns,
            entry.SIGNATURE_V2: key.sign(_SIGNED + data),
            entry.DATA: data,
        }
    )
    if len(raw) > MAX_RECORD_BYTES:
        raise InputError(f"the record would have {len(raw)} bytes; {MAX_RECORD_BYTES} is the most")
    return raw


def verify_record(raw: bytes, name: str) -> IpnsRecord:
    """Check that the key of `name` signed this record, and read it by the signed bytes alone.

    Raises:
        RecordForged: over 10 KiB, malformed, signed by another key, or its unsigned copies say something else.
        InputError: `name` is no IPNS name of an Ed25519 key.
    """
    public = public_of(name)
    fields = entry.read_entry(raw)
    data, signature = fields.get(entry.DATA), fields.get(entry.SIGNATURE_V2)
    if not isinstance(data, bytes) or not isinstance(signature, bytes) or not data:
        raise RecordForged("the record has no signed data (IPNS V2)")
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, _SIGNED + data)
    except (InvalidSignature, ValueError) as error:
        raise RecordForged("the record was not signed by the key of its name") from error
    if fields.get(entry.PUBLIC_KEY, _KEY_PREFIX + public) != _KEY_PREFIX + public:
        raise RecordForged("the record carries another key than that of its name")
    said = _read_data(data)
    for number, its_name in _COPIES.items():
        if number in fields and fields[number] != said[its_name]:
            raise RecordForged(f"the record's unsigned {its_name} is not the one that was signed")
    return IpnsRecord(
        name=name.removeprefix("/ipns/"),
        value=_text(said["Value"]),
        sequence=said["Sequence"],
        expires_ms=_read_time(said["Validity"]),
        ttl_ns=said["TTL"],
        extra=said.get(_OWN) or {},
        raw=raw,
        digest=hashlib.sha256(data).digest(),
    )


def make_node_record(key: Ed25519PrivateKey, fields: RecordFields, sequence: int, now_ms: int) -> bytes:
    """Make a node's record, valid for three minutes from `now_ms`.

    Where it would be over 10 KiB, the advertisement names fewer models (the least recently used go first), and then
    fewer speeds.

    Raises:
        InputError: it is too large even so, the fields cannot be read back, or the sequence is out of range.
    """
    if not 0 <= sequence <= MAX_SEQUENCE:
        raise InputError(f"sequence {sequence} of a node's record is out of range")
    said = Advertisement.decode(fields.advertisement)
    while True:
        value = f"/ipfs/{Cid.of(DAG_CBOR, fields.advertisement)}"
        try:
            raw = sign_record(key, value, sequence, now_ms + LIFETIME_MS, TTL_NS, dict(fields))
        except InputError:
            if said.models:
                said = said.model_copy(update={"models": said.models[:-1]})
            elif said.speeds:
                said = said.model_copy(update={"speeds": said.speeds[:-1]})
            else:
                raise
            fields = fields.model_copy(update={"advertisement": said.encode()})
            continue
        return raw


def read_node_record(raw: bytes, name: str) -> NodeRecord:
    """Verify and read a node's record; expiry, network and membership are questions for `discovery.judgement`.

    Raises:
        RecordForged: as `verify_record`; or it is no node's record, or a field cannot be what DIM wrote.
        InputError: `name` is no IPNS name of an Ed25519 key.
    """
    record = verify_record(raw, name)
    if not record.extra:
        raise RecordForged("the record is not one of a DIM node: it has no field _dim")
    if record.extra.get("v") != 1:
        raise RecordForged(f"the record's fields have version {record.extra.get('v')!r}, this DIM reads version 1")
    try:
        fields = RecordFields.model_validate(record.extra)
        advertisement = Advertisement.decode(fields.advertisement)
    except (ValidationError, InputError) as error:
        said = error.message if isinstance(error, InputError) else str(error.errors()[0]["msg"])
        raise RecordForged(f"the record's fields are malformed: {said}") from error
    if record.value != f"/ipfs/{Cid.of(DAG_CBOR, fields.advertisement)}":
        raise RecordForged("the record's value is not the CID of the advertisement in it")
    if record.sequence > MAX_SEQUENCE:
        raise RecordForged("the record's sequence is out of range")
    _check_fields(fields)
    _check_advertisement(advertisement)
    return NodeRecord(
        name=record.name,
        key=public_of(record.name),
        sequence=record.sequence,
        expires_ms=record.expires_ms,
        fields=fields,
        advertisement=advertisement,
        raw=raw,
        digest=record.digest,
    )


def digest_of(raw: bytes) -> bytes:
    """Give `NodeRecord.digest` of a record that was verified before.

    Raises:
        RecordForged: it is none.
    """
    data = entry.read_entry(raw).get(entry.DATA)
    if not isinstance(data, bytes):
        raise RecordForged("the record has no signed data (IPNS V2)")
    return hashlib.sha256(data).digest()


def name_of(key: Ed25519PrivateKey) -> str:
    """Give the IPNS name of a key."""
    return ipns_name(public_bytes(key))


def _check_fields(fields: RecordFields) -> None:
    """Refuse what DIM never writes, so that nobody further on has to ask.

    Raises:
        RecordForged: a field is out of its bounds.
    """
    if len(fields.boot) != 16 or not 0 <= fields.issued_ms <= MAX_SEQUENCE:
        raise RecordForged("the record's fields boot or issued_ms are out of bounds")
    if len(fields.endpoints) > _MOST_PLACES or len(fields.attached_to) > _MOST_PLACES:
        raise RecordForged(f"the record names more than {_MOST_PLACES} places")
    if not all(_ENDPOINT.fullmatch(each) for each in fields.endpoints):
        raise RecordForged("the record has an endpoint that is not HOST:PORT")
    for each in fields.endpoints:  # others connect to these: never to their own sockets, routers or metadata services
        if not _is_place(each):
            raise RecordForged(f"the record has an endpoint that is no address of one machine in a network: {each}")


def _is_place(endpoint: str) -> bool:
    try:
        where = Address.parse(endpoint, secure=True)
    except ConfigurationError:
        return False
    try:
        address = ipaddress.ip_address(where.host)
    except ValueError:
        return bool(where.host)  # a DNS name, or the path of a socket
    address = getattr(address, "ipv4_mapped", None) or address
    return not (address.is_link_local or address.is_multicast or address.is_unspecified)


def _check_advertisement(said: Advertisement) -> None:
    """Refuse numbers that would turn a ranking or a column upside down.

    Raises:
        RecordForged: one is out of its bounds.
    """
    numbers = [said.max_input_bytes, said.max_sessions, said.price, *(each.memory_bytes for each in said.devices)]
    for speed in said.speeds:
        numbers += (speed.rows_per_1000_s, speed.spread_per_mille, speed.samples)
    if not all(0 <= number <= MAX_SEQUENCE for number in numbers) or abs(said.utc_offset_min) > _DAY_MIN:
        raise RecordForged("a number in the advertisement is out of bounds")


def _read_data(data: bytes) -> dict[str, Any]:
    try:
        said = decode_cbor(data)
    except InputError as error:
        raise RecordForged("the record's signed data is not dag-cbor") from error
    if not isinstance(said, dict) or not said.keys() >= _STANDARD:
        raise RecordForged("the record's signed data lacks a field of an IPNS record")
    integers = (said["TTL"], said["Sequence"], said["ValidityType"])
    if not all(type(each) is int and 0 <= each < _UNSIGNED_64 for each in integers):
        raise RecordForged("a number in the record is out of range")
    if not isinstance(said["Value"], bytes) or not isinstance(said["Validity"], bytes):
        raise RecordForged("a field in the record is not of its type")
    if said["ValidityType"] != _EOL:
        raise RecordForged(f"the record has validity type {said['ValidityType']}, known is only 0 (end of life)")
    if not isinstance(said.get(_OWN, {}), dict):
        raise RecordForged("the record's field _dim is not a map")
    return said


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise RecordForged("the record's value is not text") from error


def _write_time(unix_ms: int) -> bytes:
    """Write a time as Go does: RFC 3339 with nanoseconds, UTC."""
    seconds, ms = divmod(unix_ms, 1000)
    try:
        moment = datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError) as error:
        raise InputError(f"not a time that a record can end at: {unix_ms} ms") from error
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{ms:03d}000000Z".encode()


def _read_time(text: bytes) -> int:
    match = _TIME.fullmatch(text)
    try:
        if match is None:
            raise ValueError
        moment = datetime.fromisoformat(match[1].decode()).replace(tzinfo=UTC)
    except ValueError as error:
        raise RecordForged(f"the record's end is no time: {text[:40]!r}") from error
    return int(moment.timestamp()) * 1000 + int((match[2] or b"0").ljust(9, b"0")) // 1_000_000
