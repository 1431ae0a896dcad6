"""Whether others reach a node, as an orchestrator finds by dialling it: direct when possible, attached when not."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from dim_pipelines.errors import DimError
from dim_pipelines.node.advertising import Reachability
from dim_pipelines.node.contacts import Contacts
from dim_pipelines.wire.v1 import orchestrator_pb2

log = logging.getLogger(__name__)

PROBE_EVERY_S: Final = 600.0
"""How often a node asks again, in seconds."""
LOOK_EVERY_S: Final = 15.0
"""How often it looks whether its addresses have changed, in seconds."""
PROBE_S: Final = 12.0
"""How long one probe may take: an orchestrator dials each endpoint for 3 s."""
_RETRY_S: Final = (5.0, 60.0)  # after a probe that nobody answered: the first pause, and the longest


def decide(endpoints: tuple[str, ...], reachable: tuple[str, ...], reason: str) -> Reachability:
    """Say how a node is reached, by what an orchestrator found.

    Args:
        endpoints: what it was asked to dial.
        reachable: which of them showed the node's certificate.
        reason: why the others did not.
    """
    good = tuple(each for each in endpoints if each in reachable)
    if good:
        return Reachability("direct", good, reason="an orchestrator reached it")
    if not endpoints:
        return Reachability("attached", reason="this machine has no address that others could dial")
    return Reachability("attached", reason=reason or "no endpoint showed the node's certificate")


class ReachWatch:
    """Keeps asking how the node is reached.

    Attributes:
        current: the newest answer; before the first, all endpoints are hoped to work.
        asked: set once there was an answer.
    """

    def __init__(
        self,
        contacts: Contacts,
        endpoints: Callable[[], tuple[str, ...]],
        certificate: Callable[[], bytes],
        changed: Callable[[Reachability], None],
    ) -> None:
        """Prepare.

        Args:
            contacts: the orchestrators that are asked.
            endpoints: gives the endpoints that are to be tried.
            certificate: gives DER of what they show.
            changed: is told of a new answer.
        """
        self._contacts = contacts
        self._endpoints = endpoints
        self._certificate = certificate
        self._changed = changed
        self._soon = asyncio.Event()
        first = endpoints()
        self.current = Reachability("direct" if first else "attached", first)
        self.asked = asyncio.Event()

    def soon(self) -> None:
        """Ask again now: something has changed."""
        self._soon.set()

    async def run(self) -> None:
        """Ask at once, on each change of the machine's addresses, and every ten minutes, until cancelled."""
        loop = asyncio.get_running_loop()
        pause = _RETRY_S[0]
        while True:
            endpoints = self._endpoints()
            try:
                self._take(await self._probe(endpoints))
                pause = _RETRY_S[0]
                until = loop.time() + PROBE_EVERY_S
            except DimError as error:
                log.info("nobody says how this node is reached: %s", error.message)
                until = loop.time() + pause
                pause = min(pause * 2, _RETRY_S[1])
            while loop.time() < until and not self._soon.is_set():
                try:
                    async with asyncio.timeout(min(LOOK_EVERY_S, max(0.0, until - loop.time()))):
                        await self._soon.wait()
                except TimeoutError:
                    if self._endpoints() != endpoints:
                        log.info("the machine's addresses have changed")
                        break
            self._soon.clear()

    async def _probe(self, endpoints: tuple[str, ...]) -> Reachability:
        if not endpoints:
            return decide((), (), "")
        request = orchestrator_pb2.ProbeReachRequest(endpoints=endpoints, certificate=self._certificate())
        reply = await self._contacts.ask_one(lambda stub: stub.ProbeReach(request, timeout=PROBE_S), PROBE_S)
        return decide(endpoints, tuple(reply.reachable), reply.reason)

    def _take(self, found: Reachability) -> None:
        before, self.current = self.current, found
        if (found.reach, found.endpoints) != (before.reach, before.endpoints):
            log.info("this node is reached %s: %s", found.reach, found.reason)
        self.asked.set()
        self._changed(found)
