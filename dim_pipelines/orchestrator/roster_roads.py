"""A new roster goes out by every road: SQL for the processes that share it, a hint on the bus, and its IPNS name.

The streams of WatchRoster are the fastest road and stand in `service`. Any one is enough.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dim_pipelines.bus.bus import Bus
from dim_pipelines.content.store import ContentStore
from dim_pipelines.discovery.names import NameService
from dim_pipelines.discovery.roster_hints import ROSTER, write_roster_hint
from dim_pipelines.discovery.roster_record import publish_roster
from dim_pipelines.domain.cid import DAG_CBOR, Cid
from dim_pipelines.domain.ipns import ipns_name
from dim_pipelines.errors import DimError
from dim_pipelines.identity.keys import public_bytes
from dim_pipelines.identity.membership import Membership
from dim_pipelines.orchestrator.rosters import Rosters
from dim_pipelines.settings import Home

log = logging.getLogger(__name__)

AGAIN_S: Final = 1800.0
"""How often the records are put again: a Kubo forgets what is not refreshed for two days."""
RETRY_S: Final = 30.0


def root_record_path(home: Home) -> Path:
    """Give the file of the record under the network's name, which the root key signed."""
    return home.network / "root.record"


class RosterRoads:
    """Sends each newer roster of a membership out."""

    def __init__(
        self,
        membership: Membership,
        rosters: Rosters,
        names: NameService,
        bus: Bus,
        open_store: Callable[[], Awaitable[ContentStore]],
        admission_key: Ed25519PrivateKey | None,
    ) -> None:
        """Make it; without the admission key only SQL and the bus are told.

        Args:
            membership: whose rosters are sent.
            rosters: SQL.
            names: where the roster's records stand.
            bus: where hints go.
            open_store: opens where its blocks lie; asked for each put, because IPFS may be down in between.
            admission_key: signs the records.
        """
        self._membership, self._rosters = membership, rosters
        self._names, self._bus, self._open_store = names, bus, open_store
        self._key = admission_key
        self._news = asyncio.Event()

    def changed(self) -> None:
        """Take in that there is a newer roster."""
        self._news.set()

    async def run(self) -> None:
        """Send until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            news = asyncio.Event()
            tasks.create_task(self._publish(news))
            while True:
                self._news.clear()
                await self._keep()
                await self._hint()
                news.set()
                await self._news.wait()

    async def _keep(self) -> None:
        try:
            await asyncio.to_thread(self._rosters.keep, self._membership.roster, time.time_ns() // 1_000_000)
        except DimError as error:
            log.info("a roster was not kept in the database: %s", error.message)

    async def _hint(self) -> None:
        view = self._membership.roster
        try:
            await self._bus.publish(ROSTER, write_roster_hint(view.version, Cid.of(DAG_CBOR, view.signed)))
        except DimError as error:
            log.info("no hint of a new roster was sent: %s", error.message)

    async def _publish(self, news: asyncio.Event) -> None:
        """Put the newest roster under its name; in a task of its own, because a put may take long."""
        while True:
            news.clear()
            pause = AGAIN_S if await self._put() else RETRY_S
            try:
                async with asyncio.timeout(pause):
                    await news.wait()
            except TimeoutError:
                continue

    async def _put(self) -> bool:
        view = self._membership.roster
        if self._key is None or ipns_name(public_bytes(self._key)) != ipns_name(view.delegation.key):
            return True  # somebody else's to publish
        path = root_record_path(self._membership.home)
        try:
            root = await asyncio.to_thread(path.read_bytes) if path.exists() else None
            store = await self._open_store()
            try:
                await publish_roster(view, self._key, self._names, store, root_record=root)
            finally:
                await store.close()
        except (DimError, OSError) as error:
            log.warning("the roster does not stand under the network's name yet: %s", error)
            return False
        return True
