"""Who edits the roster: whoever holds the admission key, in the daemon or at the command line. Calls block."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dim_pipelines.domain.ipns import ipns_name
from dim_pipelines.domain.roster import Member, Revocation
from dim_pipelines.errors import ConfigurationError, Forbidden
from dim_pipelines.identity.keys import load_or_create_key, public_bytes
from dim_pipelines.identity.roster import RosterView, delegate, edit_roster
from dim_pipelines.orchestrator.rosters import Rosters
from dim_pipelines.settings import Home


def admission_key_path(home: Home) -> Path:
    """Give the file of the key that signs rosters."""
    return home.keys / "admission.key"


def root_key_path(home: Home) -> Path:
    """Give the file of the key that the network is; it may be moved to a safe place after `dim network init`."""
    return home.keys / "root.key"


def load_key(path: Path) -> Ed25519PrivateKey | None:
    """Read a key that must not be made anew by accident; None where there is none.

    Raises:
        ConfigurationError: the file cannot be read.
    """
    return load_or_create_key(path) if path.exists() else None


class Admissions:
    """Edits the roster of one network."""

    def __init__(self, rosters: Rosters, admission_key: Ed25519PrivateKey | None) -> None:
        """Make an editor.

        Args:
            rosters: where versions are numbered.
            admission_key: the key that signs; None on an orchestrator that only serves.
        """
        self._rosters = rosters
        self._key = admission_key

    @property
    def key(self) -> Ed25519PrivateKey | None:
        """The admission key, where it is here."""
        return self._key

    @property
    def can_edit(self) -> bool:
        """Whether the admission key is here."""
        return self._key is not None

    def admit(self, view: RosterView, members: Iterable[Member], now_ms: int) -> RosterView:
        """Admit members, or change the entries of some; an equal entry makes no new version.

        Raises:
            Forbidden: the admission key is not here or may not sign any more, or a key was revoked before.
            InputError: a member cannot be one.
        """
        wanted = list(members)

        def change(current: RosterView) -> tuple[bytes, Sequence[bytes]] | None:
            if all(current.members.get(ipns_name(member.key)) == member for member in wanted):
                return None
            return edit_roster(current, self._signer(), admit=wanted, now_ms=now_ms)

        return self._rosters.edit(view, change, now_ms)

    def revoke(self, view: RosterView, name: str, reason: str, now_ms: int) -> RosterView:
        """Revoke a member.

        Raises:
            Forbidden: the admission key is not here or may not sign any more.
            InputError: the name is no member's.
        """

        def change(current: RosterView) -> tuple[bytes, Sequence[bytes]] | None:
            if name in current.revoked:
                return None
            member = current.members.get(name) or view.members.get(name)
            key = member.key if member is not None else b""
            gone = Revocation(key=key, reason=reason, revoked_ms=now_ms)
            return edit_roster(current, self._signer(), revoke=[gone], now_ms=now_ms)

        return self._rosters.edit(view, change, now_ms)

    def renew(self, view: RosterView, root_key: Ed25519PrivateKey, now_ms: int) -> RosterView:
        """Let the admission key here sign for another 30 days.

        Raises:
            ConfigurationError: the root key is another network's.
            Forbidden: the admission key is not here.
        """
        if ipns_name(public_bytes(root_key)) != view.network:
            raise ConfigurationError("this root key is that of another network")
        signer = self._signer()
        pair = delegate(root_key, public_bytes(signer), now_ms)

        def change(current: RosterView) -> tuple[bytes, Sequence[bytes]]:
            return edit_roster(current, signer, now_ms=now_ms, delegation=pair)

        return self._rosters.edit(view, change, now_ms)

    def _signer(self) -> Ed25519PrivateKey:
        if self._key is None:
            raise Forbidden(
                "the key that admits members is not in this home", hint="use the home where dim network init was typed"
            )
        return self._key
