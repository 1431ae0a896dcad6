"""The body of a hint on the bus topic `roster`: which version there is, and the CID of its signed block; pure."""

from __future__ import annotations

from typing import Final

from dim_pipelines.domain.cid import Cid

ROSTER: Final = "roster"
"""The topic."""


def write_roster_hint(version: int, cid: Cid) -> bytes:
    """Write a body: the version in 8 bytes, and the CID of the `SignedRoster`."""
    return version.to_bytes(8, "big") + cid


def read_roster_hint(body: bytes) -> tuple[int, Cid]:
    """Read a body; whether there is such a roster is not asked.

    Raises:
        InputError: not a version and a CID.
    """
    return int.from_bytes(body[:8], "big"), Cid(body[8:])
