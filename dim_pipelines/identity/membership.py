"""A home's membership in a network: its newest roster, its certificates, and the doors to the others.

The roster on the disk is replaced whole. Several processes of one home share it: each change is made under a lock and
against what lies on the disk, so that none of them takes the home back to an older version.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from dim_pipelines.domain.cid import Cid
from dim_pipelines.domain.ipns import ipns_name
from dim_pipelines.domain.roster import Member, Role
from dim_pipelines.errors import ConfigurationError, DimError, InputError
from dim_pipelines.identity.certificates import (
    ClientCertificate,
    ServerIdentity,
    load_client,
    load_or_create_server,
)
from dim_pipelines.identity.files import write_whole
from dim_pipelines.identity.guard import RosterGuard
from dim_pipelines.identity.membership_files import (
    JOIN_AGAIN,
    locked,
    read_facts,
    read_json,
    read_view,
    write_view,
)
from dim_pipelines.identity.roster import RosterView, accept, read_roster
from dim_pipelines.settings import Home

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Door:
    """Where a member without a certificate may ask for one.

    Attributes:
        address: `HOST:PORT`.
        certificate_hash: SHA-256 (32 bytes) of the certificate that is shown there.
    """

    address: str
    certificate_hash: bytes


@dataclass(frozen=True, slots=True)
class Orchestrator:
    """An orchestrator as the roster knows it.

    Attributes:
        name: IPNS name.
        label: its name for people.
        addresses: `HOST:PORT` of its servers.
        doors: `HOST:PORT` where it takes Join.
        certificate: DER that it shows.
    """

    name: str
    label: str
    addresses: tuple[str, ...]
    doors: tuple[str, ...]
    certificate: bytes


class Membership:
    """One home's membership. Its roster is followed by one event loop.

    Attributes:
        home: the home.
        network: the network's id.
        name: IPNS name of the key that is the member.
        roles: what it joined as; the roster says what it is now.
        trust_publishers: whether signed models of the network's publishers are loaded.
        guard: lets callers in by the newest roster.
    """

    def __init__(self, home: Home, facts: dict[str, Any], view: RosterView) -> None:
        """Use `load` or `create`."""
        self.home = home
        self.network: str = facts["network"]
        self.name: str = facts["name"]
        self.roles: tuple[Role, ...] = tuple(facts["roles"])
        self.trust_publishers: bool = facts["trust_publishers"]
        self._doors = tuple(Door(address, bytes.fromhex(pin)) for address, pin in facts["doors"])
        self._view = view
        self._listeners: list[Callable[[RosterView], None]] = []
        self.guard = RosterGuard(view)

    @classmethod
    def load(cls, home: Home) -> Membership | None:
        """Give the membership of a home; None when it has joined none.

        Raises:
            ConfigurationError: its files are damaged.
        """
        facts = read_facts(home)
        if facts is None:
            return None
        with locked(home):  # another process may be removing the pages of the roster before
            view = read_view(home, facts["network"])
        if view is None:
            raise ConfigurationError("the roster of this home's network is missing", hint=JOIN_AGAIN)
        return cls(home, facts, view)

    @classmethod
    def create(
        cls,
        home: Home,
        *,
        network: str,
        name: str,
        roles: Sequence[Role],
        signed: bytes,
        pages: Iterable[bytes],
        now_ms: int,
        doors: Sequence[Door] = (),
        swarm_key: bytes = b"",
        kubo_peers: Sequence[str] = (),
        trust_publishers: bool = True,
    ) -> Membership:
        """Keep that a home has joined a network; a home that is a member of it already gets the newer facts.

        Args:
            home: the home.
            network: the network's id.
            name: IPNS name of the member's key.
            roles: what it is.
            signed: the roster, verified here.
            pages: its pages.
            now_ms: Unix time in milliseconds.
            doors: where to ask when none of the roster's orchestrators answers.
            swarm_key: 32 bytes of the private swarm; empty where the network has none.
            kubo_peers: multiaddrs to peer with.
            trust_publishers: whether signed models of the network's publishers are loaded.

        Raises:
            ConfigurationError: the home is a member of another network, or a file cannot be written.
            RecordForged: the roster is not that network's.
            RecordExpired: the right to sign it has ended.
            RolledBack: the home has accepted a newer one.
            Forbidden: the roster does not list the member.
            InputError: the swarm key is not of 32 bytes.
        """
        if swarm_key and len(swarm_key) != 32:
            raise InputError(f"a swarm key has 32 bytes, not {len(swarm_key)}")
        offered = RosterView.open(signed, pages, network, now_ms)
        offered.member(name)
        with locked(home):
            before = read_facts(home)
            if before is not None and before["network"] != network:
                raise ConfigurationError(
                    f"this home is a member of another network: {before['network']}",
                    hint="use another DIM_HOME for this network",
                )
            current = read_view(home, network)
            if accept(current, offered):
                write_view(home, offered)
            else:
                offered = current or offered
            facts = {
                "v": 1,
                "network": network,
                "name": name,
                "roles": list(roles),
                "joined_ms": before["joined_ms"] if before else now_ms,
                "doors": [[door.address, door.certificate_hash.hex()] for door in doors],
                "trust_publishers": trust_publishers,
            }
            if swarm_key:
                write_whole(home.network / "swarm.key", swarm_key.hex().encode("ascii") + b"\n")
            write_whole(home.network / "peers.json", json.dumps(list(kubo_peers)).encode())
            # Last: a home is a member once this file is there.
            write_whole(home.network / "network.json", json.dumps(facts, indent=1).encode())
        return cls(home, facts, offered)

    @property
    def roster(self) -> RosterView:
        """The newest roster that was accepted."""
        return self._view

    @property
    def member(self) -> Member:
        """This home's own entry.

        Raises:
            Forbidden: it was revoked, or is none any more.
        """
        return self._view.member(self.name)

    def keep_roster(self, signed: bytes, pages: Iterable[bytes], now_ms: int) -> bool:
        """Take a roster in: verify it, keep it on the disk, judge callers by it, tell the listeners.

        Args:
            signed: the roster.
            pages: its pages, or only those that changed.
            now_ms: Unix time in milliseconds.

        Returns:
            Whether it is newer than the one before.

        Raises:
            RecordForged: not this network's, or not validly signed.
            RecordExpired: the right to sign it has ended.
            RolledBack: older than the one before, or another of the same version.
            ContentNotFound: a page is missing, here and among the pages.
            ConfigurationError: it cannot be written.
        """
        if signed == self._view.signed:
            return False
        offered = RosterView.open(signed, (*self._view.pages, *pages), self.network, now_ms)
        with locked(self.home):
            on_disk = read_view(self.home, self.network)
            # Another process of this home may have been faster, or the folder may have been taken away.
            current = on_disk if on_disk is not None and on_disk.version > self._view.version else self._view
            try:
                newer = accept(current, offered)
            finally:
                if current is not self._view:
                    self._renew(current)
            if newer:
                write_view(self.home, offered)
        if newer:
            self._renew(offered)
        return newer

    def reload(self) -> bool:
        """Take in the roster that another process of this home has kept; tell whether it is newer.

        Raises:
            ConfigurationError: the files are damaged.
        """
        try:
            if (self.home.network / "roster.cbor").read_bytes() == self._view.signed:
                return False
        except OSError:
            return False
        with locked(self.home):
            on_disk = read_view(self.home, self.network)
        if on_disk is None or on_disk.version <= self._view.version:
            return False
        self._renew(on_disk)
        return True

    def missing_pages(self, signed: bytes) -> list[Cid]:
        """Name the pages of a roster that this home does not have.

        Raises:
            RecordForged: not this network's, or not validly signed.
        """
        roster, _ = read_roster(signed, self.network)
        have = set(self._view.roster.pages)
        return [cid for cid in roster.pages if cid not in have]

    def on_roster(self, callback: Callable[[RosterView], None]) -> Callable[[], None]:
        """Call back with each newer roster; gives what ends that."""
        self._listeners.append(callback)
        return lambda: self._listeners.remove(callback)

    def client(self, role: Role) -> ClientCertificate:
        """Give this home's client certificate in a role.

        Raises:
            ConfigurationError: it has none.
        """
        return load_client(self.home, role)

    def server(self) -> ServerIdentity:
        """Give what this home's servers show; made when there is none.

        Raises:
            ConfigurationError: a file cannot be read or written.
        """
        return load_or_create_server(self.home, self.name)

    def orchestrators(self) -> list[Orchestrator]:
        """Give the orchestrators that the roster knows the server of."""
        return [
            Orchestrator(
                ipns_name(member.key),
                member.label or "orchestrator",
                member.addresses,
                member.doors,
                member.certificate,
            )
            for member in self._view.with_role("orchestrator")
            if member.certificate is not None
        ]

    @property
    def doors(self) -> tuple[Door, ...]:
        """The doors of the invite that this home joined with."""
        return self._doors

    @property
    def swarm_key(self) -> bytes:
        """The 32 bytes of the network's private swarm; empty where it has none.

        Raises:
            ConfigurationError: the file is damaged.
        """
        path = self.home.network / "swarm.key"
        try:
            text = path.read_text(encoding="ascii").strip()
        except FileNotFoundError:
            return b""
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"cannot read {path}: {error}", hint=JOIN_AGAIN) from error
        if not re.fullmatch("[0-9a-f]{64}", text):
            raise ConfigurationError(f"{path} holds no swarm key", hint=JOIN_AGAIN)
        return bytes.fromhex(text)

    @property
    def kubo_peers(self) -> list[str]:
        """Multiaddrs of the network's Kubo daemons.

        Raises:
            ConfigurationError: the file is damaged.
        """
        found = read_json(self.home.network / "peers.json")
        if found is None:
            return []
        if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
            raise ConfigurationError(f"{self.home.network / 'peers.json'} is damaged", hint=JOIN_AGAIN)
        return found

    def keep_peers(self, kubo_peers: Sequence[str]) -> None:
        """Keep the multiaddrs of the network's Kubo daemons.

        Raises:
            ConfigurationError: they cannot be written.
        """
        write_whole(self.home.network / "peers.json", json.dumps(list(kubo_peers)).encode())

    def _renew(self, view: RosterView) -> None:
        self._view = view
        self.guard.renew(view)
        for listener in list(self._listeners):
            try:
                listener(view)
            except DimError:
                log.exception("a listener to the roster failed")
