"""Looking for nodes from a home in which no orchestrator runs: for some seconds, by every road that is there.

The name service is asked for records, the network's orchestrators for what they know, and the nodes themselves
whether they answer. What is found is judged and kept as an orchestrator would.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable
from typing import Final, Self

from dim_pipelines.database.engine import open_database
from dim_pipelines.discovery.names import NameService
from dim_pipelines.discovery.node_states import STATES
from dim_pipelines.discovery.node_table import NodeTable
from dim_pipelines.discovery.open_names import open_names
from dim_pipelines.discovery.resolver import Resolver
from dim_pipelines.domain.roster import Role
from dim_pipelines.errors import ConfigurationError, DimError
from dim_pipelines.identity.certificates import ClientCertificate
from dim_pipelines.identity.membership import Membership
from dim_pipelines.orchestrator.meeting_point import find_orchestrator
from dim_pipelines.orchestrator.peers import Peers
from dim_pipelines.orchestrator.prober import Prober
from dim_pipelines.settings import Home

LOOK_S: Final = 4.0
"""How long nodes are watched at least: two health checks of one that hangs fit in."""
_INTERVAL_S: Final = 0.7
_TIMEOUT_S: Final = 1.4
_POLL_S: Final = 0.1
_ROLES: Final[tuple[Role, ...]] = ("run_host", "orchestrator", "user", "node", "publisher")
_PROBED: Final = ("VERIFIED", "ELIGIBLE", "SUSPECT")


class Survey:
    """Looks for the nodes of a home's network, whenever it is asked to. Used in one event loop."""

    def __init__(self, membership: Membership, table: NodeTable, ipfs: str) -> None:
        """Make it; nothing is asked yet.

        Args:
            membership: the home's.
            table: where what is found is kept.
            ipfs: where names stand: `embedded`, `kubo`, or the address of a Kubo.
        """
        self._membership, self._table, self._ipfs = membership, table, ipfs
        self._resolver: Resolver | None = None
        self._names: NameService | None = None
        self._soon: Callable[[str], None] = _nothing

    @classmethod
    def of(cls, home: Home, ipfs: str) -> Self | None:
        """Make that of a home's network; None where the home is in none.

        Raises:
            ConfigurationError: the database or the membership cannot be read.
        """
        membership = Membership.load(home)
        return None if membership is None else cls(membership, NodeTable(open_database(home.database_url)), ipfs)

    async def look_where_nobody_does(self, timeout_s: float) -> str:
        """Look as `look` does, unless an orchestrator that runs in this home does so all the time."""
        if find_orchestrator(self._membership.home) is not None:
            return "the orchestrator that runs here knows of none"
        return await self.look(timeout_s)

    async def look(self, timeout_s: float) -> str:
        """Look for at most so many seconds, and give what came of it, one line.

        Raises:
            DimError: nothing could be looked for.
        """
        self._membership.reload()
        client = self._client()
        notes: list[str] = []
        if self._names is None:
            try:
                self._names = open_names(self._ipfs, self._membership.home)
                self._resolver = None
            except DimError as error:  # the network's orchestrators may know
                notes.append(error.message)
        if self._resolver is None:
            self._resolver = Resolver(self._table, self._membership, self._names, None)
            self._resolver.on_change(lambda name: self._soon(name))
        resolver, before = self._resolver, Counter(self._resolver.outcomes)
        peers = Peers(self._membership, client, resolver)
        prober = Prober(
            self._table, self._membership.name, client, tuple, peers, interval_s=_INTERVAL_S, timeout_s=_TIMEOUT_S
        )
        self._soon = prober.soon
        began = time.monotonic()
        tasks = [asyncio.create_task(peers.run()), asyncio.create_task(prober.run())]
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    asked = await resolver.ask() if self._names is not None else 0
                    notes.append(f"asked for {asked} records")
                    while True:
                        if not await self._is_open(time.monotonic() - began):
                            break
                        await asyncio.sleep(_POLL_S)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._soon = _nothing
        await resolver.tick()
        return "; ".join([*notes, *_said(resolver.outcomes - before), await self._states()])

    async def close(self) -> None:
        """Give back the name service."""
        if self._names is not None:
            names, self._names = self._names, None
            await names.close()

    def _client(self) -> ClientCertificate:
        for role in _ROLES:
            with contextlib.suppress(ConfigurationError):
                return self._membership.client(role)
        raise ConfigurationError(
            "this home has no client certificate of its network", hint="an orchestrator gives it one: dim doctor"
        )

    async def _is_open(self, passed_s: float) -> bool:
        """Tell whether it is worth going on: nodes are there that may not have been asked twice."""
        rows = await asyncio.to_thread(self._table.rows, _PROBED)
        if passed_s < LOOK_S:
            return bool(rows) or bool(self._membership.orchestrators())
        return any(row.state == "VERIFIED" for row in rows)

    async def _states(self) -> str:
        counts = Counter(row.state for row in await asyncio.to_thread(self._table.rows))
        return ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state]) or "no nodes"


def _nothing(name: str) -> None:
    """Nobody looks just now."""


def _said(outcomes: Counter[tuple[str, str]]) -> list[str]:
    return [f"{count} {outcome} by {road}" for (road, outcome), count in sorted(outcomes.items())]
