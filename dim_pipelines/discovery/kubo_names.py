"""The name service of a Kubo: `name/put` and `name/get` of records that DIM has signed; Kubo never sees a key.

`force` is never sent: with it Kubo answers 200 to what it does not store (facts of Kubo 0.43, measured). A put is
read back, because what counts is that somebody else finds it.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

from dim_pipelines.content.kubo_http import KuboHttp, KuboRefused
from dim_pipelines.discovery.memory_names import check_put, unix_ms
from dim_pipelines.discovery.names import MAX_RECORD_BYTES
from dim_pipelines.discovery.record import verify_record
from dim_pipelines.errors import ContentUnavailable, NameUnresolved, RecordExpired, RecordForged, RolledBack
from dim_pipelines.settings import Home

PUT_S: Final = 75.0
"""How long a put may take: one peer that hangs makes it take 41 s (measured), and given up earlier it is lost."""
MARGIN_S: Final = 2.0
"""How much longer than Kubo itself we wait for its answer."""
GETS: Final = 16
"""How many gets run at a time."""
READ_BACK_S: Final = 5.0


class KuboNameService:
    """Records in the routing system of a Kubo's swarm."""

    def __init__(self, address: str, *, home: Home | None = None, put_s: float = PUT_S) -> None:
        """Take the address of the Kubo's RPC; nothing is sent yet.

        Args:
            address: a multiaddr or an http URL.
            home: where the Kubo's secret is looked for.
            put_s: how long a put may take.

        Raises:
            ConfigurationError: the address has no form that is known.
        """
        self._http = KuboHttp(address, home)
        self._put_s = put_s
        self._gets = asyncio.Semaphore(GETS)

    async def put(self, name: str, record: bytes) -> None:
        """See `NameService.put`."""
        offered = check_put(record, name, None, unix_ms())
        try:
            await self._http.call("name/put", offered.name, body=record, timeout_s=self._put_s)
        except KuboRefused as error:
            raise _translated(offered.name, error) from error
        try:
            found = await self.get(offered.name, READ_BACK_S)
        except NameUnresolved as error:
            raise ContentUnavailable(
                f"the Kubo at {self._http.address} took a record and does not give it back"
            ) from error
        if found == record:
            return
        with contextlib.suppress(RecordForged):
            stands = verify_record(found, offered.name)
            if stands.sequence >= offered.sequence:
                raise RolledBack(f"{name} has a record of sequence {stands.sequence}; this one has {offered.sequence}")
        raise ContentUnavailable(f"the Kubo at {self._http.address} took a record and gives back another")

    async def get(self, name: str, timeout_s: float = 5.0) -> bytes:
        """See `NameService.get`."""
        async with self._gets:
            try:
                raw = await self._http.call(
                    "name/get",
                    name,
                    options={"timeout": f"{round(timeout_s * 1000)}ms"},
                    timeout_s=timeout_s + MARGIN_S,
                )
            except KuboRefused as error:
                raise NameUnresolved(
                    f"the Kubo at {self._http.address} finds no record of {name}: {error.message}"
                ) from error
        if not 0 < len(raw) <= MAX_RECORD_BYTES:
            raise NameUnresolved(f"the Kubo at {self._http.address} gives {len(raw)} bytes as the record of {name}")
        return raw

    async def close(self) -> None:
        """See `NameService.close`."""


def _translated(name: str, error: KuboRefused) -> Exception:
    said = error.message
    if "existing IPNS record has sequence" in said or "already exists" in said:
        return RolledBack(f"{name}: {said}")
    if "expired" in said:
        return RecordExpired(f"{name}: {said}")
    if any(text in said for text in ("signature", "invalid", "too large", "exceeds", "unmarshal", "public key")):
        return RecordForged(f"Kubo refuses the record of {name}: {said}")
    return ContentUnavailable(f"Kubo could not put the record of {name}: {said}")
