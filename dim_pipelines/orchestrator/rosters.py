"""The network's roster where it is edited: SQL holds every version, and numbers them without a gap or a fork.

A new version is one transaction that inserts (network, version): of two editors that started from the same version
one finds the place taken, reads anew and edits again. Blocking; the home's own copy (`identity/membership`) follows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from sqlalchemy import Connection, insert, select
from sqlalchemy.exc import IntegrityError

from dim_pipelines.database.engine import Database
from dim_pipelines.database.tables import roster_pages, rosters
from dim_pipelines.domain.cid import DAG_CBOR, Cid
from dim_pipelines.domain.roster import Roster, SignedRoster
from dim_pipelines.errors import CoordinationError, RolledBack
from dim_pipelines.identity.roster import RosterView, accept

_TRIES: Final = 20


class Rosters:
    """The rosters of one network in a database."""

    def __init__(self, database: Database, network: str) -> None:
        """Use the tables in a database."""
        self._database = database
        self._network = network

    def version(self) -> int:
        """Give the newest version; 0 where none is kept."""
        with self._database.read() as connection:
            return self._version(connection)

    def newest(self) -> RosterView | None:
        """Give the newest roster, verified; None where none is kept.

        Raises:
            DiscoveryError: what is kept is not this network's.
        """
        with self._database.read() as connection:
            found = connection.execute(
                select(rosters.c.signed)
                .where(rosters.c.network == self._network)
                .order_by(rosters.c.version.desc())
                .limit(1)
            ).scalar()
            if found is None:
                return None
            cids = Roster.decode(SignedRoster.decode(found).roster).pages
            wanted = [str(cid) for cid in cids]
            rows = connection.execute(select(roster_pages).where(roster_pages.c.cid.in_(wanted)))
            pages = {row.cid: row.data for row in rows}
        return RosterView.open(found, [pages[cid] for cid in wanted if cid in pages], self._network, None)

    def keep(self, view: RosterView, now_ms: int) -> bool:
        """Keep a verified roster; False where it is there already.

        Raises:
            RolledBack: one of its version with other bytes, or a newer one, is kept.
        """
        version, signed = view.version, view.signed
        with self._database.write() as connection:
            same = connection.execute(
                select(rosters.c.signed).where(rosters.c.network == self._network, rosters.c.version == version)
            ).scalar()
            if same == signed:
                return False
            if same is not None:
                raise RolledBack(f"the roster has another version {version} already")
            if self._version(connection) > version:
                raise RolledBack(f"a newer roster than version {version} is kept")
            try:
                self._insert(connection, view, now_ms)
            except IntegrityError as error:  # Postgres: another transaction was quicker
                raise RolledBack(f"the roster has another version {version} already") from error
        return True

    def edit(
        self, view: RosterView, change: Callable[[RosterView], tuple[bytes, Sequence[bytes]] | None], now_ms: int
    ) -> RosterView:
        """Make the next version.

        Args:
            view: the newest roster that the caller knows; what SQL holds goes before it.
            change: makes the next version of a roster (`identity.roster.edit_roster`); called again when another
                editor was quicker; None: nothing is to be changed.
            now_ms: Unix time in milliseconds.

        Raises:
            DiscoveryError: what is kept is not this network's.
            CoordinationError: other editors were quicker 20 times.
        """
        for _ in range(_TRIES):
            current = self.newest()
            if current is None or view.version > current.version:
                current = view
            made = change(current)
            if made is None:
                return current
            signed, pages = made
            fresh = RosterView.open(signed, pages, self._network, now_ms)
            accept(current, fresh)
            try:
                self.keep(fresh, now_ms)
            except RolledBack:
                continue
            return fresh
        raise CoordinationError("the roster is being edited by too many at once", hint="try again")

    def _version(self, connection: Connection) -> int:
        query = (
            select(rosters.c.version)
            .where(rosters.c.network == self._network)
            .order_by(rosters.c.version.desc())
            .limit(1)
        )
        return int(connection.execute(query).scalar() or 0)

    def _insert(self, connection: Connection, view: RosterView, now_ms: int) -> None:
        pages = {str(Cid.of(DAG_CBOR, page)): page for page in view.pages}
        there = set(connection.execute(select(roster_pages.c.cid).where(roster_pages.c.cid.in_(list(pages)))).scalars())
        fresh = [{"cid": cid, "data": page} for cid, page in pages.items() if cid not in there]
        if fresh:
            connection.execute(insert(roster_pages), fresh)
        connection.execute(
            insert(rosters).values(network=self._network, version=view.version, signed=view.signed, accepted_ms=now_ms)
        )
