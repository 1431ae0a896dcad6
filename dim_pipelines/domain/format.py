"""How DIM's values become bytes: dag-cbor maps that carry their major version `v`.

Source: https://ipld.io/specs/codecs/dag-cbor/spec/ (canonical: one value, one encoding). An absent
optional is left out, so a field added later does not change the bytes of older values. An unknown
optional field is kept; an unknown major version or kind is refused.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

import libipld
from pydantic import BaseModel, ConfigDict, ValidationError

from dim_pipelines.domain.cid import CODECS, DAG_CBOR, Cid
from dim_pipelines.errors import InputError


def encode_cbor(value: Any) -> bytes:
    """Encode plain data (maps, lists, str, int, float, bytes, Cid) and values made of it as dag-cbor.

    Tuples become lists; a value becomes a map of its fields that are not None. A `Cid`, or plain bytes that
    are one (36 bytes: so links of unknown optional fields survive), becomes a link (tag 42); all other bytes
    are byte strings, even where they begin like a foreign CID.

    Raises:
        InputError: the value holds something dag-cbor cannot (a NaN, a huge integer, a key that is no text).
    """
    odd: list[bytes] = []
    plain = _plain(value, odd)
    try:
        return _encode_odd(plain) if odd else libipld.encode_dag_cbor(plain)
    except (ValueError, RecursionError) as error:
        raise InputError(f"value cannot be written as dag-cbor: {error}") from error


def decode_cbor(data: bytes) -> Any:
    """Decode dag-cbor; links come back as 36 plain bytes.

    Raises:
        InputError: the bytes are not dag-cbor.
    """
    try:
        return libipld.decode_dag_cbor(data)
    except Exception as error:  # the Rust binding raises several unrelated classes
        raise InputError(f"not dag-cbor: {error}") from error


def _plain(value: Any, odd: list[bytes]) -> Any:
    """Turn tuples into lists and values into maps; collect in `odd` the bytes that libipld takes for a foreign CID."""
    if isinstance(value, (list, tuple)):
        return [item if type(item) in _LEAVES else _plain(item, odd) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item, odd) for key, item in value.items()}
    if isinstance(value, Value):
        fields = {key: _plain(item, odd) for key, item in value.__dict__.items() if item is not None}
        return fields | {key: _plain(item, odd) for key, item in (value.model_extra or {}).items()}
    # libipld writes any bytes that parse as a CID as a link: a key or a hash would be one in 2^18 times,
    # and a pin would then look for a block that nobody has
    if isinstance(value, bytes) and value[:1] in _CID_STARTS and not _is_link(value):
        odd.append(value)
    return value


_LEAVES = frozenset({Cid, int, str, float, bool, type(None)})
_CID_STARTS = (b"\x01", b"\x12")
_OWN_STARTS = frozenset(bytes((1, codec)) + b"\x12\x20" for codec in CODECS)


def _is_link(value: bytes) -> bool:
    if isinstance(value, Cid):
        return True
    return len(value) == 36 and value[:4] in _OWN_STARTS


def _encode_odd(value: Any) -> bytes:
    """Encode as `encode_dag_cbor` does, but with no bytes taken for links that are none."""
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise ValueError("map keys must be strings")
        pairs = sorted((len(raw), raw, item) for raw, item in ((key.encode(), item) for key, item in value.items()))
        return _head(5, len(pairs)) + b"".join(_head(3, size) + raw + _encode_odd(item) for size, raw, item in pairs)
    if isinstance(value, list):
        return _head(4, len(value)) + b"".join(_encode_odd(item) for item in value)
    if isinstance(value, bytes) and not _is_link(value):
        return _head(2, len(value)) + value
    return libipld.encode_dag_cbor(value)


def _head(major: int, count: int) -> bytes:
    """Give the shortest CBOR head (RFC 8949, 3 and 4.2.1)."""
    if count < 24:
        return bytes((major << 5 | count,))
    size = 0 if count < 1 << 8 else 1 if count < 1 << 16 else 2 if count < 1 << 32 else 3
    return bytes((major << 5 | 24 + size,)) + count.to_bytes(1 << size, "big")


class Value(BaseModel):
    """A frozen value that is only a part of a stored one: unknown fields are kept."""

    model_config = ConfigDict(frozen=True, extra="allow")


class Format(Value):
    """A stored value: one dag-cbor block with `v` (major version) and `kind`."""

    kind_name: ClassVar[str]
    v: int = 1
    kind: str = ""

    def model_post_init(self, context: Any, /) -> None:
        """Fill in the kind of the class."""
        if not self.kind:
            object.__setattr__(self, "kind", self.kind_name)

    def encode(self) -> bytes:
        """Give the canonical bytes."""
        return encode_cbor(self)

    def cid(self) -> Cid:
        """Name the canonical bytes."""
        return Cid.of(DAG_CBOR, self.encode())

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read the bytes of a stored value.

        Raises:
            InputError: not dag-cbor, another kind, an unknown major version, or a field is wrong.
        """
        value = decode_cbor(data)
        if not isinstance(value, dict) or value.get("kind") != cls.kind_name:
            found = value.get("kind") if isinstance(value, dict) else type(value).__name__
            raise InputError(f"expected a {cls.kind_name}, found {found!r}")
        if value.get("v") != 1:
            raise InputError(
                f"{cls.kind_name} has version {value.get('v')!r}, this DIM reads version 1",
                hint="update DIM",
            )
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise InputError(f"{cls.kind_name} is malformed at {where or 'its root'}: {first['msg']}") from error
