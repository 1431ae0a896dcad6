"""The body of a hint on the bus topic `nodes`: a name, a NUL, and the record that stands under it."""

from __future__ import annotations

from dim_pipelines.discovery.names import MAX_RECORD_BYTES
from dim_pipelines.domain.ipns import public_of
from dim_pipelines.errors import InputError


def write_announcement(name: str, raw: bytes) -> bytes:
    """Write a body."""
    return name.encode("ascii") + b"\0" + raw


def read_announcement(body: bytes) -> tuple[str, bytes]:
    """Read a body; whether the record is good is not asked.

    Raises:
        InputError: not a name and a record of at most 10 KiB.
    """
    head, nul, raw = body.partition(b"\0")
    if not nul or not head.isascii() or not raw or len(raw) > MAX_RECORD_BYTES:
        raise InputError("a hint about nodes carries something else than a record")
    name = head.decode("ascii")
    public_of(name)
    return name, raw
