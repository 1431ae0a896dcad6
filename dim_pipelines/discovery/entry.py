"""The protobuf envelope of an IPNS record: `IpnsEntry` of https://specs.ipfs.tech/ipns/ipns-record/.

Only `data` (field 9) is signed by what we check, `signature_v2` (field 8); the other fields are copies for old
readers, and nothing here decides by them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from dim_pipelines.content.dag_pb import varint
from dim_pipelines.discovery.names import MAX_RECORD_BYTES
from dim_pipelines.errors import RecordForged

VALUE: Final = 1
SIGNATURE_V1: Final = 2
VALIDITY_TYPE: Final = 3
VALIDITY: Final = 4
SEQUENCE: Final = 5
TTL: Final = 6
PUBLIC_KEY: Final = 7
SIGNATURE_V2: Final = 8
DATA: Final = 9

_INTEGERS: Final = frozenset({VALIDITY_TYPE, SEQUENCE, TTL})
_KNOWN: Final = frozenset(range(VALUE, DATA + 1))
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_LONGEST_VARINT: Final = 10


def write_entry(fields: Mapping[int, int | bytes]) -> bytes:
    """Give the bytes of an entry, its fields in the order of their numbers."""
    parts: list[bytes] = []
    for number, value in sorted(fields.items()):
        if isinstance(value, int):
            parts.append(varint(number << 3 | _VARINT) + varint(value))
        else:
            parts.append(varint(number << 3 | _BYTES) + varint(len(value)) + value)
    return b"".join(parts)


def read_entry(raw: bytes) -> dict[int, int | bytes]:
    """Give the known fields of an entry by number; as protobuf has it, the last of two counts, and unknown ones do not.

    Raises:
        RecordForged: over 10 KiB, cut short, or a field of the wrong type.
    """
    if len(raw) > MAX_RECORD_BYTES:
        raise RecordForged(f"the record has {len(raw)} bytes; {MAX_RECORD_BYTES} is the most")
    fields: dict[int, int | bytes] = {}
    position = 0
    while position < len(raw):
        tag, position = _read_varint(raw, position)
        number, kind = tag >> 3, tag & 7
        if number == 0 or tag >= 1 << 32:
            raise RecordForged("the record is no IPNS entry: it has a field without a number")
        value: int | bytes
        if kind == _VARINT:
            value, position = _read_varint(raw, position)
        elif kind in (_BYTES, _FIXED64, _FIXED32):
            size = 8 if kind == _FIXED64 else 4
            if kind == _BYTES:
                size, position = _read_varint(raw, position)
            value, position = raw[position : position + size], position + size
            if position > len(raw):
                raise RecordForged("the record is cut short")
        else:
            raise RecordForged(f"the record is no IPNS entry: it has a field of wire type {kind}")
        if number in _KNOWN:
            if (kind == _VARINT) != (number in _INTEGERS) or kind in (_FIXED64, _FIXED32):
                raise RecordForged(f"the record is no IPNS entry: field {number} has the wrong type")
            fields[number] = value
    return fields


def _read_varint(raw: bytes, position: int) -> tuple[int, int]:
    number = shift = 0
    for byte in raw[position : position + _LONGEST_VARINT]:
        position += 1
        number |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            if number >= 1 << 64:
                break
            return number, position
    raise RecordForged("the record is no IPNS entry: it holds an unfinished or huge number")
