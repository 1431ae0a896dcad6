"""Addresses of a Kubo's RPC, and the secret that opens it.

A Kubo that DIM starts asks every caller for a secret (`API.Authorizations`), because its RPC is TCP on loopback,
which every user of the machine reaches. The secret lies beside its repository's `api`, readable by its owner only.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from dim_pipelines.errors import ConfigurationError
from dim_pipelines.settings import Home

SECRET_FILE: Final = "dim-secret"
SECRET_VARIABLE: Final = "DIM_KUBO_SECRET"
"""Names the bearer secret of a Kubo that is none of DIM's own."""
REPOSITORY: Final = "kubo"
"""The home's own Kubo lies in this folder of it."""

_started_here: dict[str, str] = {}


def parse_address(address: str) -> str:
    """Give the multiaddr of a Kubo's RPC from a multiaddr or an http URL.

    Raises:
        ConfigurationError: it is neither.
    """
    hint = "an address is like /ip4/127.0.0.1/tcp/5001 or http://127.0.0.1:5001"
    if address.startswith("/"):
        if address.startswith("/unix/") and address != address.lower():
            raise ConfigurationError(
                f"the path of the unix socket has capital letters: {address}",
                hint="ipfshttpclient finds only lower-case socket paths: move the socket, or use TCP",
            )
        return address
    url = urlsplit(address)
    try:
        host, port = url.hostname, url.port
    except ValueError as error:
        raise ConfigurationError(f"not the address of a Kubo: {address!r}", hint=hint) from error
    if url.scheme not in ("http", "https") or not host or url.path not in ("", "/", "/api/v0", "/api/v0/"):
        raise ConfigurationError(f"not the address of a Kubo: {address!r}", hint=hint)
    kind = "ip6" if ":" in host else "ip4" if host.replace(".", "").isdigit() else "dns"
    return f"/{kind}/{host}/tcp/{port or (443 if url.scheme == 'https' else 80)}/{url.scheme}"


def find_secret(address: str, home: Home | None = None) -> str | None:
    """Give the secret of the Kubo whose RPC is at an address; None where it is asked for none that we know.

    Looked for among the Kubos that this process has started, in the home, in the home that a local node's home is
    part of, and in the environment (`DIM_KUBO_SECRET`).
    """
    wanted = _bare(address)
    if wanted in _started_here:
        return _started_here[wanted]
    roots = [(home or Home.at()).root]
    if roots[0].parent.name == "nodes":
        roots.append(roots[0].parent.parent)
    for root in roots:
        repository = root / REPOSITORY
        try:
            if _bare((repository / "api").read_text().strip()) == wanted:
                return (repository / SECRET_FILE).read_text().strip() or None
        except (OSError, UnicodeDecodeError, ConfigurationError):
            continue  # no Kubo of DIM lies there
    return os.environ.get(SECRET_VARIABLE) or None


def keep_secret(address: str, secret: str | None) -> None:
    """Remember the secret of a Kubo that this process has started; None when it has ended."""
    if secret is None:
        _started_here.pop(_bare(address), None)
    else:
        _started_here[_bare(address)] = secret


def secret_of(repository: Path) -> str | None:
    """Give the secret of the Kubo in a repository; None where it has none."""
    try:
        return (repository / SECRET_FILE).read_text().strip() or None
    except OSError:
        return None


def _bare(address: str) -> str:
    return parse_address(address).removesuffix("/http")
