"""Whose batches a node runs and whose programs it loads: the home's own trust, and the roster of its network."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection
from dataclasses import dataclass

from dim_pipelines.domain.grant import Grant
from dim_pipelines.domain.ipns import ipns_name, public_of
from dim_pipelines.errors import Forbidden
from dim_pipelines.identity.authority import check_signer, read_grant
from dim_pipelines.identity.roster import RosterView


@dataclass(frozen=True, slots=True)
class NodeTrust:
    """Whom a node trusts now; as a container: the publishers whose programs it loads.

    Attributes:
        submitters: keys of `trusted.yaml`, whose grants are honoured.
        publishers: keys of `trusted.yaml`, whose programs are loaded.
        roster: gives the newest roster of the network that the node has joined; None without one.
        roster_publishers: programs of the roster's publishers are loaded, too.
    """

    submitters: Collection[bytes] = frozenset()
    publishers: Collection[bytes] = frozenset()
    roster: Callable[[], RosterView | None] = lambda: None
    roster_publishers: bool = False

    def open_grant(self, data: bytes, now_ms: int, caller: str = "") -> tuple[Grant, bytes]:
        """Check an encoded `SignedGrant`; give the grant and its signer's public key.

        Args:
            data: what `Open` carried.
            now_ms: Unix time in milliseconds.
            caller: IPNS name of the member who shows it, by its certificate; empty for a caller of this machine.

        Raises:
            Forbidden: malformed, not validly signed, over, shown by somebody who is not its holder, or by a key that
                is not trusted for it.
        """
        grant, signer = read_grant(data, now_ms)
        if caller and hashlib.sha256(public_of(caller)).digest() != grant.holder:
            raise Forbidden(f"the grant for batch {grant.batch} was given to another run worker than {caller}")
        self.check(grant, signer)
        return grant, signer

    def check(self, grant: Grant, signer: bytes) -> None:
        """See that a grant's signer is trusted now; asked again when the roster changes.

        Raises:
            Forbidden: a stranger, another network, no orchestrator, or revoked.
        """
        check_signer(grant, signer, self.submitters, self.roster())

    def max_sessions(self, signer: bytes) -> int | None:
        """Give how many sessions a signer's grants may hold here at a time, as the roster says; None: any number."""
        roster = self.roster()
        member = roster.members.get(ipns_name(signer)) if roster else None
        return member.limits.max_sessions if member else None

    def __contains__(self, key: object) -> bool:
        """Tell whether a publisher's programs are loaded."""
        if key in self.publishers:
            return True
        roster = self.roster()
        if not isinstance(key, bytes) or roster is None or not self.roster_publishers:
            return False
        try:
            return "publisher" in roster.member(ipns_name(key)).roles
        except Forbidden:
            return False
