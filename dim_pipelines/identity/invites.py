"""Invite strings: `dim1-`, base64url of an `Invite` and four bytes of its SHA-256. Pure.

Whoever holds the string may join, once: it is as secret as a password, and over when it was used or its time is.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from datetime import UTC, datetime
from typing import Final

from dim_pipelines.domain.ipns import public_of
from dim_pipelines.domain.roster import Invite
from dim_pipelines.errors import Forbidden, InputError

PREFIX: Final = "dim1-"
MAX_CHARACTERS: Final = 4096
SECRET_BYTES: Final = 32
_CHECK_BYTES: Final = 4
_AGAIN: Final = "copy the whole line that dim network invite printed"


def format_invite(invite: Invite) -> str:
    """Write an invite as people pass it on.

    Raises:
        InputError: it is none that `parse_invite` would read.
    """
    _check(invite)
    data = invite.encode()
    text = PREFIX + base64.urlsafe_b64encode(data + _sum(data)).decode("ascii").rstrip("=")
    if len(text) > MAX_CHARACTERS:
        raise InputError(f"an invite of {len(text)} characters is too long", hint="name fewer doors")
    return text


def parse_invite(text: str, now_ms: int | None = None) -> Invite:
    """Read an invite string; blanks and line breaks that mail programs put in do not matter.

    Args:
        text: the string.
        now_ms: Unix time in milliseconds; when left out the invite may have expired.

    Raises:
        InputError: it is no invite, was cut short, or was changed.
        Forbidden: it has expired.
    """
    bare = "".join(text.split())
    if not bare.startswith(PREFIX):
        if re.match(r"dim[0-9]+-", bare):
            raise InputError("the invite is of another version of DIM", hint="update DIM")
        raise InputError("this is no invite", hint=f"an invite begins with {PREFIX}: {_AGAIN}")
    body = bare.removeprefix(PREFIX)
    if len(bare) > MAX_CHARACTERS or not re.fullmatch(r"[A-Za-z0-9_-]*", body):
        raise InputError("this is no invite: it is too long, or holds characters that no invite has", hint=_AGAIN)
    try:
        raw = base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))
    except (binascii.Error, ValueError) as error:
        raise InputError("the invite was cut short", hint=_AGAIN) from error
    data, check = raw[:-_CHECK_BYTES], raw[-_CHECK_BYTES:]
    if len(raw) <= _CHECK_BYTES or check != _sum(data):
        raise InputError("the invite was cut short, or a character is wrong", hint=_AGAIN)
    invite = Invite.decode(data)
    _check(invite)
    if now_ms is not None and now_ms >= invite.not_after_ms:
        when = datetime.fromtimestamp(invite.not_after_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")
        raise Forbidden(f"the invite expired at {when}", hint="ask for a new one: dim network invite")
    return invite


def _check(invite: Invite) -> None:
    public_of(invite.network)
    if not invite.doors or len(invite.doors) != len(invite.certificates):
        raise InputError("an invite names at least one door, and the certificate of each")
    if any(len(pin) != 32 for pin in invite.certificates) or len(invite.secret) != SECRET_BYTES:
        raise InputError("an invite's secret and the hashes of its certificates have 32 bytes")
    if not invite.roles or not 0 < len(invite.id) <= 40 or not 0 <= invite.not_after_ms < 1 << 53:
        raise InputError("an invite has an id, roles and an end")


def _sum(data: bytes) -> bytes:
    return hashlib.sha256(b"dim/invite/1\0" + data).digest()[:_CHECK_BYTES]
