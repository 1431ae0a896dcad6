"""The files of a home's membership, read and written under one lock by all processes of the home."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from dim_pipelines.domain.cid import DAG_CBOR, Cid
from dim_pipelines.domain.ipns import public_of
from dim_pipelines.domain.roster import ROLES
from dim_pipelines.errors import ConfigurationError, DimError, InputError
from dim_pipelines.identity.files import write_whole
from dim_pipelines.identity.roster import RosterView, read_roster
from dim_pipelines.settings import Home

JOIN_AGAIN: Final = "move its folder 'network' away and join again: dim network join INVITE"
"""What to do about damaged files."""


@contextlib.contextmanager
def locked(home: Home) -> Iterator[None]:
    """Hold the home's membership against other processes."""
    try:
        home.network.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(home.network / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigurationError(f"cannot write {home.network}: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def read_facts(home: Home) -> dict[str, Any] | None:
    """Read `network.json`; None when the home has joined no network.

    Raises:
        ConfigurationError: it is damaged.
    """
    path = home.network / "network.json"
    facts = read_json(path)
    if facts is None:
        return None
    try:
        if facts["v"] != 1:
            raise ConfigurationError(f"{path} has version {facts['v']!r}", hint="update DIM")
        public_of(facts["network"])
        public_of(facts["name"])
        for address, pin in facts["doors"]:
            if not isinstance(address, str) or len(bytes.fromhex(pin)) != 32:
                raise ValueError("a door is an address and a hash")
        if not set(facts["roles"]) <= set(ROLES) or not isinstance(facts["joined_ms"], int):
            raise ValueError("roles or time")
        facts["trust_publishers"] = bool(facts["trust_publishers"])
    except (KeyError, TypeError, ValueError, AttributeError, InputError) as error:
        raise ConfigurationError(f"{path} is damaged: {error}", hint=JOIN_AGAIN) from error
    return dict(facts)


def read_json(path: Path) -> Any:
    """Read a file; None when it is missing.

    Raises:
        ConfigurationError: it is damaged.
    """
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{path} is damaged: {error}", hint=JOIN_AGAIN) from error


def read_view(home: Home, network: str) -> RosterView | None:
    """Read the roster that was accepted last, whatever the time; None when there is none.

    Raises:
        ConfigurationError: it is damaged, or another network's.
    """
    path = home.network / "roster.cbor"
    try:
        signed = path.read_bytes()
        roster, _ = read_roster(signed, network)
        pages = [(home.network / "pages" / str(cid)).read_bytes() for cid in roster.pages]
        return RosterView.open(signed, pages, network, None)
    except FileNotFoundError as error:
        if path.exists():
            raise ConfigurationError(f"a page of the roster is missing: {error.filename}", hint=JOIN_AGAIN) from error
        return None
    except (OSError, DimError) as error:
        raise ConfigurationError(f"{path} is damaged: {error}", hint=JOIN_AGAIN) from error


def write_view(home: Home, view: RosterView) -> None:
    """Write the pages that are new, then the roster that names them, then remove the pages that it does not."""
    folder = home.network / "pages"
    for page in view.pages:
        path = folder / str(Cid.of(DAG_CBOR, page))
        if not path.exists() or path.read_bytes() != page:
            write_whole(path, page)
    write_whole(home.network / "roster.cbor", view.signed)
    wanted = {str(cid) for cid in view.roster.pages}
    for path in folder.iterdir() if folder.exists() else ():
        if path.name not in wanted:
            path.unlink(missing_ok=True)
