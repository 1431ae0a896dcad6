"""Whose batches a node runs and whose programs it loads: the home's own trust, and the roster of its network."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Final, Protocol

from dim_pipelines.domain.grant import Grant
from dim_pipelines.domain.ipns import ipns_name
from dim_pipelines.domain.roster import Member
from dim_pipelines.errors import Forbidden
from dim_pipelines.identity.authority import read_grant
from dim_pipelines.identity.keys import format_public_key

LOCAL: Final = "local"
"""The network of a grant between keys that trust each other without a network."""


class Members(Protocol):
    """The verified roster, as far as it is asked here."""

    def member(self, name: str) -> Member:
        """Give a member by its IPNS name.

        Raises:
            Forbidden: there is none, or it was revoked.
        """
        ...


@dataclass(frozen=True, slots=True)
class NodeTrust:
    """Whom a node trusts now.

    Attributes:
        submitters: keys of `trusted.yaml` whose grants are honoured without a network.
        own_publishers: keys of `trusted.yaml` whose programs are loaded.
        network: the network that the node has joined; empty: none.
        roster: gives its newest roster.
        roster_publishers: programs of roster members with the role publisher are loaded, too.
    """

    submitters: Collection[bytes] = frozenset()
    own_publishers: Collection[bytes] = frozenset()
    network: str = ""
    roster: Callable[[], Members] | None = field(default=None)
    roster_publishers: bool = False

    def open_grant(self, data: bytes, now_ms: int) -> tuple[Grant, bytes]:
        """Check an encoded `SignedGrant`; give the grant and its signer's public key.

        Raises:
            Forbidden: malformed, not validly signed, over, for another network, or by a key that is not trusted.
        """
        grant, signer = read_grant(data, now_ms)
        self.check(grant, signer)
        return grant, signer

    def check(self, grant: Grant, signer: bytes) -> None:
        """See that a grant's signer is trusted now; asked again when the roster changes.

        A joined node honours the grants of its network that an orchestrator of the roster signed, and those of
        the network `local` that a key of `trusted.yaml` signed; without a network that file alone decides.

        Raises:
            Forbidden: another network, no orchestrator, revoked, or no key that this node trusts.
        """
        if self.roster is None or grant.network == LOCAL:
            if signer not in self.submitters:
                raise Forbidden(
                    f"this node does not trust {format_public_key(signer)} to submit batches",
                    hint="on the node: dim node start --trust KEY",
                )
            return
        if grant.network != self.network:
            raise Forbidden(f"the grant is for network {grant.network}, this node is in {self.network}")
        member = self.roster().member(ipns_name(signer))
        if "orchestrator" not in member.roles:
            raise Forbidden(
                f"the grant is signed by {member.label or format_public_key(signer)}, which is no orchestrator"
            )

    def __contains__(self, key: object) -> bool:
        """Tell whether a publisher's programs are loaded."""
        if key in self.own_publishers:
            return True
        if not isinstance(key, bytes) or self.roster is None or not self.roster_publishers:
            return False
        try:
            return "publisher" in self.roster().member(ipns_name(key)).roles
        except Forbidden:
            return False
