"""Content identifiers: CIDv1 with SHA-256, the only kind that DIM makes or accepts.

Source: https://github.com/multiformats/cid (CIDv1) and https://github.com/multiformats/multicodec.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from typing import Any, Final, Self

from pydantic_core import core_schema

from dim_pipelines.errors import InputError

RAW: Final = 0x55
"""Multicodec of a leaf that is plain bytes."""
DAG_PB: Final = 0x70
"""Multicodec of a UnixFS file or directory node."""
DAG_CBOR: Final = 0x71
"""Multicodec of DIM's own formats."""
CODECS: Final = frozenset({RAW, DAG_PB, DAG_CBOR})

_SHA2_256: Final = b"\x12\x20"
_LENGTH: Final = 36
_STARTS: Final = frozenset(bytes((1, codec)) + _SHA2_256 for codec in CODECS)


class Cid(bytes):
    """A CIDv1 in its 36 binary bytes: version 1, codec, SHA-256, digest.

    It is a subclass of bytes so that dag-cbor encodes it as a link; `str()` gives the base32 text.
    """

    __slots__ = ()

    def __new__(cls, raw: bytes) -> Self:
        """Check the 36 bytes.

        Raises:
            InputError: they are not a CIDv1 with SHA-256 and a codec that DIM uses.
        """
        if len(raw) != _LENGTH or raw[:4] not in _STARTS:
            raise InputError(
                f"not a CID that DIM reads: {bytes(raw[:8]).hex()}…",
                hint="DIM reads CIDv1 with sha2-256 of raw, dag-pb or dag-cbor blocks",
            )
        return super().__new__(cls, raw)

    @classmethod
    def of(cls, codec: int, data: bytes | memoryview) -> Self:
        """Name `data` (one block) under `codec`."""
        return cls(bytes((1, codec)) + _SHA2_256 + hashlib.sha256(data).digest())

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the base32 text, with or without `ipfs://` or `/ipfs/` before it.

        Raises:
            InputError: the text is no CID that DIM reads.
        """
        bare = text.removeprefix("ipfs://").removeprefix("/ipfs/").rstrip("/")
        if not bare.startswith("b") or bare != bare.lower():
            raise InputError(f"not a CID: {text!r}", hint="a CID of DIM is base32 text that starts with 'baf'")
        body = bare[1:].upper()
        try:
            raw = base64.b32decode(body + "=" * (-len(body) % 8))
        except (binascii.Error, ValueError) as error:
            raise InputError(f"not a CID: {text!r}", hint="a character or the length is wrong") from error
        return cls(raw)

    @property
    def codec(self) -> int:
        """The multicodec of the block: RAW, DAG_PB or DAG_CBOR."""
        return self[1]

    @property
    def digest(self) -> bytes:
        """The 32 bytes of SHA-256."""
        return bytes(self[4:])

    def names(self, data: bytes | memoryview) -> bool:
        """Tell whether `data` is the block that this CID names."""
        return hashlib.sha256(data).digest() == self[4:]

    def __str__(self) -> str:
        """Give the base32 text."""
        return "b" + base64.b32encode(self).decode("ascii").lower().rstrip("=")

    def __repr__(self) -> str:
        """Give the text, marked as a CID."""
        return f"Cid({str(self)!r})"

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> core_schema.CoreSchema:
        """Accept a Cid, its 36 bytes or its text; JSON holds the text."""

        def read(value: object) -> Cid:
            if isinstance(value, Cid):
                return value
            try:
                if isinstance(value, bytes):
                    return cls(value)
                if isinstance(value, str):
                    return cls.parse(value)
            except InputError as error:
                raise ValueError(error.message) from error
            raise ValueError("a CID is 36 bytes or base32 text")

        return core_schema.no_info_plain_validator_function(
            read, serialization=core_schema.plain_serializer_function_ser_schema(str, when_used="json")
        )


def looks_like_cid(text: str) -> bool:
    """Tell whether the text is a CID (bare, `ipfs://` or `/ipfs/`)."""
    try:
        Cid.parse(text)
    except InputError:
        return False
    return True
