"""A node's roster kept new: by an orchestrator's stream, by hints, by the network's name, by the home's own files."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Sequence
from typing import Any, Final, Protocol

import grpc

from dim_pipelines.bus.bus import Bus
from dim_pipelines.content.store import ContentStore
from dim_pipelines.discovery.names import NameService
from dim_pipelines.discovery.roster_hints import ROSTER, read_roster_hint
from dim_pipelines.discovery.roster_record import fetch_roster
from dim_pipelines.domain.ipns import ipns_name
from dim_pipelines.errors import ContentNotFound, DimError, NodeUnreachable, RolledBack
from dim_pipelines.identity.membership import Membership
from dim_pipelines.node.contacts import CALL_S, Contact, Contacts
from dim_pipelines.wire.status import from_rpc_error
from dim_pipelines.wire.v1 import orchestrator_pb2

log = logging.getLogger(__name__)

RESOLVE_EVERY_S: Final = 60.0
"""How often the roster is looked for under the network's name where no orchestrator tells of it, in seconds."""
LOOK_EVERY_S: Final = 2.0
"""How often the home's files are looked at, in seconds: another process of the home may know a newer roster."""
_PAUSES: Final = (0.2, 10.0)  # seconds before the next orchestrator is asked: the first pause, and the longest


class RosterKeeper(Protocol):
    """The home's membership, as far as it is used here."""

    @property
    def version(self) -> int:
        """Version of the newest roster."""
        ...

    def keep(self, signed: bytes, pages: Sequence[bytes]) -> bool:
        """Take a roster in; tell whether it is newer."""
        ...

    def reload(self) -> bool:
        """Take in what another process of the home has kept; tell whether it is newer."""
        ...


class RosterFollower:
    """Keeps the roster new while `run` runs.

    Attributes:
        seen_ms: Unix time in milliseconds at which an orchestrator last spoke of the roster; 0: never.
        watching: the orchestrator whose stream is open; empty: none.
        error: why there is none; empty when there is.
    """

    def __init__(self, keeper: RosterKeeper, contacts: Contacts, choice: random.Random | None = None) -> None:
        """Prepare.

        Args:
            keeper: takes rosters in.
            contacts: the orchestrators that are asked.
            choice: draws the pauses.
        """
        self.seen_ms = 0
        self.watching = ""
        self.error = ""
        self._keeper = keeper
        self._contacts = contacts
        self._choice = choice or random.Random()

    async def run(self) -> None:
        """Follow until cancelled."""
        looking = asyncio.create_task(self._look())
        try:
            await self._watch()
        finally:
            looking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await looking

    async def fetch(self) -> None:
        """Ask an orchestrator for the newest roster once: a hint said that there is one.

        Raises:
            DimError: none gave it.
        """
        for contact in self._contacts.order():
            try:
                await self._read(contact, follow=False)
            except NodeUnreachable as error:
                log.info("orchestrator %s: %s", contact.label, error.message)
                continue
            return
        raise NodeUnreachable("no orchestrator gives the roster")

    async def take_hints(self, bus: Bus) -> None:
        """Ask for the roster when an orchestrator says on the bus that there is a newer one, until cancelled.

        Of others a hint is not taken: one member could have all nodes ask the orchestrators, as often as it likes.
        """
        async with bus.subscribe(ROSTER) as hints:
            async for hint in hints:
                if ipns_name(hint.sender) not in {each.name for each in self._contacts.order()}:
                    continue
                try:
                    version, _ = read_roster_hint(hint.body)
                    if version > self._keeper.version:
                        await self.fetch()
                except DimError as error:
                    log.info("a hint at a newer roster came to nothing: %s", error.message)

    async def resolve(self, network: str, names: NameService, store: ContentStore) -> None:
        """Look for the roster under the network's name while no orchestrator tells of it, until cancelled."""
        while True:
            await asyncio.sleep(RESOLVE_EVERY_S * self._choice.uniform(0.9, 1.1))
            if self.watching:
                continue
            try:
                view = await fetch_roster(network, names, store, time.time_ns() // 1_000_000)
                self._keeper.keep(view.signed, view.pages)
            except DimError as error:
                log.info("the roster cannot be found by its name: %s", error.message)

    async def _watch(self) -> None:
        loop, pause = asyncio.get_running_loop(), _PAUSES[0]
        while True:
            for contact in self._contacts.order():
                begun, before = loop.time(), self.seen_ms
                try:
                    await self._read(contact, follow=True)
                    self.error = f"orchestrator {contact.label} has ended the stream"
                except DimError as error:
                    self.error = error.message
                    log.info("the roster cannot be followed at %s: %s", contact.label, error.message)
                finally:
                    self.watching = ""
                if self.seen_ms != before or loop.time() - begun > _PAUSES[1]:
                    pause = _PAUSES[0]
                    break
            await asyncio.sleep(pause * self._choice.uniform(0.5, 1.5))
            pause = min(pause * 2, _PAUSES[1])

    async def _read(self, contact: Contact, *, follow: bool) -> None:
        """Take in what an orchestrator says of the roster until it ends; all pages where some are missing.

        Raises:
            DimError: it does not answer, or what it says is refused.
        """
        try:
            await self._updates(contact, self._keeper.version, follow=follow)
        except ContentNotFound:
            await self._updates(contact, 0, follow=follow)

    async def _updates(self, contact: Contact, version: int, *, follow: bool) -> None:
        request = orchestrator_pb2.WatchRosterRequest(version=version, follow=follow)
        stub = self._contacts.stub(contact)
        # A stream that follows may be silent for days: the channel's keepalive finds out when the other end has gone.
        call = stub.WatchRoster(request, timeout=None if follow else CALL_S)
        greeted = asyncio.ensure_future(call.initial_metadata())
        greeted.add_done_callback(lambda done: self._greeted(done, contact, follow))
        try:
            async for update in call:
                self._take(update)
                self._heard(contact, follow)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error
        finally:
            call.cancel()
            greeted.cancel()

    def _greeted(self, done: asyncio.Future[Any], contact: Contact, follow: bool) -> None:
        if not done.cancelled() and done.exception() is None:
            self._heard(contact, follow)

    def _heard(self, contact: Contact, follow: bool) -> None:
        self.seen_ms = time.time_ns() // 1_000_000
        if follow:
            self.watching, self.error = contact.label, ""

    def _take(self, update: orchestrator_pb2.RosterUpdate) -> None:
        try:
            newer = self._keeper.keep(update.roster, update.pages)
        except RolledBack as error:
            log.info("an orchestrator has an older roster: %s", error.message)
            return
        if newer:
            log.info("the roster is version %d", self._keeper.version)

    async def _look(self) -> None:
        while True:
            try:
                self._keeper.reload()
            except DimError as error:
                log.warning("the home's roster cannot be read: %s", error.message)
            await asyncio.sleep(LOOK_EVERY_S)


class MembershipKeeper:
    """A membership, as `RosterFollower` sees it."""

    def __init__(self, membership: Membership) -> None:
        """Keep rosters in this membership."""
        self._membership = membership

    @property
    def version(self) -> int:
        """See `RosterKeeper.version`."""
        return self._membership.roster.version

    def keep(self, signed: bytes, pages: Sequence[bytes]) -> bool:
        """See `RosterKeeper.keep`."""
        return self._membership.keep_roster(signed, pages, time.time_ns() // 1_000_000)

    def reload(self) -> bool:
        """See `RosterKeeper.reload`."""
        return self._membership.reload()
