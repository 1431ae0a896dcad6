"""The table of invites: made here, taken once each. SQL; calls block.

The table keeps the SHA-256 of an invite's secret, never the secret. An invite is taken by a compare-and-set on
`used_ms`, so that of two that come at once with the same string one gets in. The one who got in may come again with
it: its first answer may have been lost on the way.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from sqlalchemy import delete, func, insert, select, update

from dim_pipelines.database.engine import Database
from dim_pipelines.database.tables import invites
from dim_pipelines.domain.roster import Invite, Limits, Role
from dim_pipelines.errors import Forbidden, QuotaExceeded

MAX_OPEN: Final = 10_000
"""How many invites may wait at a time."""
KEPT_MS: Final = 30 * 24 * 3600 * 1000
"""How long an invite is remembered after its end, so that a late one is told that it has ended."""
SECRET_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class Admission:
    """What the holder of an invite becomes; `again`: it has taken the invite before."""

    roles: tuple[Role, ...]
    owner: str
    limits: Limits
    again: bool = False


class Invites:
    """The invites of a database."""

    def __init__(self, database: Database) -> None:
        """Use the table in a database."""
        self._database = database

    def make(
        self,
        network: str,
        doors: Sequence[tuple[str, bytes]],
        admission: Admission,
        *,
        lifetime_ms: int,
        now_ms: int,
    ) -> Invite:
        """Make an invite.

        Args:
            network: IPNS name of the network's root key.
            doors: `HOST:PORT` of each door, and the SHA-256 of the certificate that it shows.
            admission: what its holder becomes.
            lifetime_ms: how long it may be used, in milliseconds.
            now_ms: Unix time in milliseconds.

        Raises:
            QuotaExceeded: 10,000 invites are open.
        """
        secret = secrets.token_bytes(SECRET_BYTES)
        invite = Invite(
            network=network,
            doors=tuple(address for address, _ in doors),
            certificates=tuple(certificate for _, certificate in doors),
            id=secrets.token_hex(8),
            secret=secret,
            roles=admission.roles,
            not_after_ms=now_ms + lifetime_ms,
        )
        with self._database.write() as connection:
            connection.execute(delete(invites).where(invites.c.expires_ms < now_ms - KEPT_MS))
            still_open = invites.c.used_ms.is_(None) & (invites.c.expires_ms > now_ms)
            if int(connection.execute(select(func.count()).where(still_open)).scalar() or 0) >= MAX_OPEN:
                raise QuotaExceeded(f"{MAX_OPEN} invites are open", hint="wait until some are used or have ended")
            connection.execute(
                insert(invites).values(
                    id=invite.id,
                    network=network,
                    secret_hash=hashlib.sha256(secret).digest(),
                    roles=json.dumps(list(admission.roles)),
                    owner=admission.owner,
                    limits=admission.limits.model_dump_json(exclude_none=True),
                    expires_ms=invite.not_after_ms,
                    created_ms=now_ms,
                )
            )
        return invite

    def take(self, id: str, secret: bytes, network: str, name: str, now_ms: int) -> Admission:
        """Use an invite up.

        Args:
            id: the invite's.
            secret: what its holder shows.
            network: the network it must be for.
            name: IPNS name of the member's key that takes it; that key may take it again.
            now_ms: Unix time in milliseconds.

        Raises:
            Forbidden: there is none like it, it has ended, or somebody else has used it.
        """
        with self._database.write() as connection:
            row = connection.execute(select(invites).where(invites.c.id == id)).mappings().one_or_none()
            # One answer for an unknown id and a wrong secret: neither can be told from the other.
            known = b"" if row is None else bytes(row["secret_hash"])
            if not hmac.compare_digest(known, hashlib.sha256(secret).digest()) or row is None:
                raise Forbidden("there is no such invite", hint=_ASK)
            if row["network"] != network:
                raise Forbidden("the invite is for another network", hint=_ASK)
            if row["used_by"] == name:
                return replace(_admission(row["roles"], row["owner"], row["limits"]), again=True)
            if row["used_ms"] is not None:
                raise Forbidden("the invite was used before: it admits one member", hint=_ASK)
            if row["expires_ms"] <= now_ms:
                raise Forbidden("the invite has ended", hint=_ASK)
            taken = connection.execute(
                update(invites)
                .where(invites.c.id == id, invites.c.used_ms.is_(None))
                .values(used_ms=now_ms, used_by=name)
            )
            if taken.rowcount != 1:
                raise Forbidden("the invite was used before: it admits one member", hint=_ASK)
            return _admission(row["roles"], row["owner"], row["limits"])

    def give_back(self, id: str, name: str) -> None:
        """Make an invite usable again that this member took and that came to nothing."""
        with self._database.write() as connection:
            connection.execute(
                update(invites).where(invites.c.id == id, invites.c.used_by == name).values(used_ms=None, used_by=None)
            )


_ASK: Final = "ask for a new one: dim network invite"


def _admission(roles: str, owner: str, limits: str) -> Admission:
    return Admission(tuple(json.loads(roles)), owner, Limits.model_validate_json(limits))
