"""How DIM's values become bytes: dag-cbor maps that carry their major version `v`.

Source: https://ipld.io/specs/codecs/dag-cbor/spec/ (canonical: one value, one encoding). An absent
optional is left out, so a field added later does not change the bytes of older values. An unknown
optional field is kept; an unknown major version or kind is refused.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

import libipld
from pydantic import BaseModel, ConfigDict, ValidationError

from dim_pipelines.domain.cid import DAG_CBOR, Cid
from dim_pipelines.errors import InputError


def encode_cbor(value: Any) -> bytes:
    """Encode plain data (maps, lists, str, int, float, bytes, Cid) as dag-cbor.

    Tuples become lists. A `Cid` becomes a link (tag 42).

    Raises:
        InputError: the value holds something dag-cbor cannot (a NaN, a huge integer, a key that is no text).
    """
    try:
        return libipld.encode_dag_cbor(_plain(value))
    except ValueError as error:
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


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


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
        return encode_cbor(self.model_dump(exclude_none=True))

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
