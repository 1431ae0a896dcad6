"""Who is let in, by the newest roster; whoever is let in no more loses the streams that are open."""

from __future__ import annotations

import asyncio
import weakref

from dim_pipelines.errors import Forbidden
from dim_pipelines.identity.certificates import key_identifier
from dim_pipelines.identity.roster import RosterView
from dim_pipelines.wire.access import Peer


class RosterGuard:
    """Implements `wire.access.Guard` over a roster. Used by one event loop."""

    def __init__(self, view: RosterView) -> None:
        """Judge by a verified roster."""
        self._view = view
        self._issuers = _issuers(view)
        # An event lives as long as a stream holds it: peers that come and go cost nothing.
        self._events: weakref.WeakValueDictionary[Peer, asyncio.Event] = weakref.WeakValueDictionary()

    def check(self, peer: Peer) -> None:
        """Let a peer in or refuse it.

        Raises:
            Forbidden: another network, no member, revoked, not in this role, or by a CA that is honoured no more.
        """
        if peer.network != self._view.network:
            raise Forbidden(f"the caller is of another network: {peer.network[:80]!r}")
        member = self._view.member(peer.name)
        if peer.role not in member.roles:
            raise Forbidden(f"{peer.name} is no {peer.role}: the roster says {' | '.join(member.roles)}")
        if peer.issuer and peer.issuer not in self._issuers:
            raise Forbidden(
                "the client certificate is from a CA that is in the roster no more", hint="renew the certificate"
            )

    def revoked(self, peer: Peer) -> asyncio.Event:
        """Give the event that is set once the peer is let in no more."""
        event = self._events.get(peer)
        if event is None or event.is_set():
            event = self._events[peer] = asyncio.Event()
            if not self._lets_in(peer):
                event.set()
        return event

    def renew(self, view: RosterView) -> None:
        """Judge by a newer roster, and cut off whom it does not let in."""
        self._view, self._issuers = view, _issuers(view)
        for peer, event in list(self._events.items()):
            if not self._lets_in(peer):
                event.set()

    def _lets_in(self, peer: Peer) -> bool:
        try:
            self.check(peer)
        except Forbidden:
            return False
        return True


def _issuers(view: RosterView) -> frozenset[bytes]:
    return frozenset(map(key_identifier, view.client_cas()))
