"""A name service in memory: the twin that tests and single processes use."""

from __future__ import annotations

import time
from collections.abc import Callable, MutableMapping

from dim_pipelines.discovery.record import IpnsRecord, verify_record
from dim_pipelines.errors import NameUnresolved, RecordExpired, RecordForged, RolledBack


def unix_ms() -> int:
    """Give the time as records have it."""
    return time.time_ns() // 1_000_000


def check_put(offered: bytes, name: str, existing: bytes | None, now_ms: int) -> IpnsRecord:
    """Decide whether a service takes a record, as Kubo's `name/put` does; pure.

    An existing record that has expired counts no more.

    Raises:
        RecordForged: the offered one is invalid or too large.
        RecordExpired: it has expired.
        RolledBack: the existing one has a higher sequence, or the same with other bytes.
    """
    record = verify_record(offered, name)
    if record.expires_ms <= now_ms:
        raise RecordExpired(f"the record of {name} expired {(now_ms - record.expires_ms) / 1000:.1f} s ago")
    if existing is None or existing == offered:
        return record
    try:
        stands = verify_record(existing, name)
    except RecordForged:
        return record  # what stands there is no record: anything is better
    if stands.expires_ms > now_ms and stands.sequence >= record.sequence:
        raise RolledBack(f"{name} has a record of sequence {stands.sequence}; this one has {record.sequence}")
    return record


class MemoryNameService:
    """Records in a dictionary, which several services may share."""

    def __init__(self, shared: MutableMapping[str, bytes] | None = None, clock_ms: Callable[[], int] = unix_ms) -> None:
        """Make a service.

        Args:
            shared: name → record; its own when left out.
            clock_ms: Unix time in milliseconds.
        """
        self._records: MutableMapping[str, bytes] = {} if shared is None else shared
        self._clock_ms = clock_ms

    async def put(self, name: str, record: bytes) -> None:
        """See `NameService.put`."""
        check_put(record, name, self._records.get(name), self._clock_ms())
        self._records[name] = record

    async def get(self, name: str, timeout_s: float = 5.0) -> bytes:
        """See `NameService.get`."""
        raw = self._records.get(name)
        if raw is None or verify_record(raw, name).expires_ms <= self._clock_ms():
            raise NameUnresolved(f"no record of {name} is known")
        return raw

    async def close(self) -> None:
        """See `NameService.close`."""
