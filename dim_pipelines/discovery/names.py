"""The protocol of name services: where signed records stand under the IPNS names of their keys.

Keys never leave DIM: a service stores and gives bytes. What it gives is a claim of strangers; `discovery.record`
verifies it.
"""

from __future__ import annotations

from typing import Final, Protocol

MAX_RECORD_BYTES: Final = 10 << 10
"""The largest record: https://specs.ipfs.tech/ipns/ipns-record/ (10 KiB)."""


class NameService(Protocol):
    """Records by name."""

    async def put(self, name: str, record: bytes) -> None:
        """Store a record, and see that it can be read back; the same bytes again are fine.

        It may take long (a hung peer of a Kubo: 20 to 41 s), so callers give it a task of its own.

        Raises:
            RecordForged: the service finds the record invalid or too large.
            RecordExpired: it has expired.
            RolledBack: the service has one of a higher sequence, or of the same with other bytes.
            ContentUnavailable: the service does not answer.
        """
        ...

    async def get(self, name: str, timeout_s: float = 5.0) -> bytes:
        """Give the newest record that the service finds within the time.

        Raises:
            NameUnresolved: it finds none.
            ContentUnavailable: the service does not answer.
        """
        ...

    async def close(self) -> None:
        """Give back what the service holds."""
        ...
