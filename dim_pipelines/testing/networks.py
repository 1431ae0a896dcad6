"""A network of homes in one folder: keys, roster, certificates, made without any server."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dim_pipelines.domain.ipns import ipns_name, public_of
from dim_pipelines.domain.roster import Member, Revocation, Role
from dim_pipelines.identity.certificates import (
    Ca,
    client_public_key,
    load_or_create_ca,
    load_or_create_server,
    store_client,
)
from dim_pipelines.identity.keys import load_or_create_key, public_bytes
from dim_pipelines.identity.membership import Membership
from dim_pipelines.identity.roster import RosterView, edit_roster, found_network
from dim_pipelines.settings import Home
from dim_pipelines.wire.access import Peer


class MadeNetwork:
    """A network with one orchestrator, whose home also holds the network's keys.

    Attributes:
        id: the network's id.
        root: its root key.
        admission: the key that signs its roster.
        orchestrator: membership of the orchestrator's home; its roster is the newest.
        ca: the orchestrator's.
    """

    def __init__(self, folder: Path, *, addresses: Iterable[str] = (), doors: Iterable[str] = ()) -> None:
        """Found it.

        Args:
            folder: gets the homes, one folder each.
            addresses: what the roster says of the orchestrator's server.
            doors: what it says of its doors.
        """
        self._folder = folder
        home = Home.at(folder / "orchestrator")
        self.root = load_or_create_key(home.keys / "root.key")
        self.admission = load_or_create_key(home.keys / "admission.key")
        self.id = ipns_name(public_bytes(self.root))
        self.key = load_or_create_key(home.user_key)
        name = ipns_name(public_bytes(self.key))
        self.ca: Ca = load_or_create_ca(home, self.id, name)
        roles: tuple[Role, ...] = ("orchestrator", "run_host", "publisher", "user")
        member = Member(
            key=public_bytes(self.key), roles=roles, owner="operator", label="orchestrator", admitted_ms=now_ms(),
            ca=self.ca.certificate, certificate=load_or_create_server(home, name).certificate,
            addresses=tuple(addresses), doors=tuple(doors),
        )  # fmt: skip
        signed, pages = found_network(self.root, self.admission, [member], now_ms())
        self.orchestrator = Membership.create(
            home, network=self.id, name=name, roles=roles, signed=signed, pages=pages, now_ms=now_ms()
        )
        self.certify(home, name, roles)

    @property
    def roster(self) -> RosterView:
        """The newest roster."""
        return self.orchestrator.roster

    def join(
        self, label: str, *roles: Role, key: Ed25519PrivateKey | None = None, owner: str = "", home: Home | None = None
    ) -> Membership:
        """Make a home whose key is a member, with a client certificate for each of its roles.

        Args:
            label: its name; also its folder's and, when left out, its owner's.
            roles: what it is.
            key: its key; the new home's node key when left out.
            owner: whom it belongs to.
            home: the home that joins; a new one when left out.
        """
        home = home or Home.at(self._folder / label)
        key = key or load_or_create_key(home.node_key)
        name = ipns_name(public_bytes(key))
        self.admit(Member(key=public_bytes(key), roles=roles, owner=owner or label, label=label, admitted_ms=now_ms()))
        made = Membership.create(
            home, network=self.id, name=name, roles=roles, signed=self.roster.signed, pages=self.roster.pages,
            now_ms=now_ms(),
        )  # fmt: skip
        self.certify(home, name, roles)
        return made

    def certify(self, home: Home, name: str, roles: Iterable[Role], *, hours: int = 24, at_ms: int = 0) -> None:
        """Give a home client certificates, from now on or from another time (Unix milliseconds)."""
        for role in roles:
            peer = Peer(self.id, role, name)
            store_client(home, role, self.ca.issue(client_public_key(home), peer, at_ms or now_ms(), hours))

    def admit(self, *members: Member) -> None:
        """Put members into the roster, or change them."""
        self._edit(admit=members)

    def revoke(self, name: str, reason: str = "lost") -> None:
        """Revoke a member."""
        self._edit(revoke=[Revocation(key=public_of(name), reason=reason, revoked_ms=now_ms())])

    def _edit(self, admit: Iterable[Member] = (), revoke: Iterable[Revocation] = ()) -> None:
        signed, pages = edit_roster(self.roster, self.admission, admit=admit, revoke=revoke, now_ms=now_ms())
        self.orchestrator.keep_roster(signed, pages, now_ms())


def now_ms() -> int:
    """Give the Unix time in milliseconds."""
    return time.time_ns() // 1_000_000
