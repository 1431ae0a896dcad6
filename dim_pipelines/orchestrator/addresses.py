"""Where an orchestrator listens and what the roster says of it; pure but for looking whether a port is free."""

from __future__ import annotations

from collections.abc import Sequence

from dim_pipelines.errors import ConfigurationError
from dim_pipelines.wire.address import Address
from dim_pipelines.wire.server import check_free

_ALL = ("0.0.0.0", "::")


def remembered(listen: str, known: Sequence[str]) -> str:
    """Give where to listen: with port 0 on the port that the roster knows, where that is free.

    Members find an orchestrator again after a restart without a new roster.

    Args:
        listen: `HOST:PORT`.
        known: `HOST:PORT` that the roster says of this orchestrator.

    Raises:
        ConfigurationError: an address is malformed.
    """
    wanted = Address.parse(listen, secure=True)
    if wanted.port:
        return str(wanted)
    for each in known:
        before = str(Address(host=wanted.host, port=Address.parse(each, secure=True).port))
        try:
            check_free(before, secure=True)
        except ConfigurationError:
            continue
        return before
    return str(wanted)


def advertised(listening: str, given: Sequence[str]) -> tuple[str, ...]:
    """Give the `HOST:PORT`s at which others find a server.

    Args:
        listening: where it listens, with the port that it has.
        given: what the operator says instead: `HOST`, which gets the port, or `HOST:PORT`.

    Raises:
        ConfigurationError: it listens on all addresses and the operator says nothing, or an address is malformed.
    """
    bound = Address.parse(listening, secure=True)
    if not given:
        if bound.host in _ALL:
            raise ConfigurationError(
                f"{listening} is on all addresses of this machine, and members need one to come to",
                hint="say which: --advertise HOST",
            )
        return (str(bound),)
    return tuple(dict.fromkeys(str(_with_port(each, bound.port)) for each in given))


def _with_port(text: str, port: int) -> Address:
    host = text.removeprefix("[").removesuffix("]")
    bare = ":" not in text or (text.count(":") > 1 and not text.startswith("[")) or text.endswith("]")
    return (
        Address.parse(f"[{host}]:{port}" if ":" in host else f"{host}:{port}", secure=True)
        if bare
        else (Address.parse(text, secure=True))
    )
