"""Addresses: a unix socket, or a host and a port. Without TLS a host is loopback."""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass
from typing import Final

from dim_pipelines.errors import ConfigurationError

_UNIX_PATH_BYTES: Final = 107  # sun_path of unix(7), less the final NUL
_HOST_NAME: Final = re.compile(r"(?=.{1,253}\Z)(?!-)[a-zA-Z0-9-]{1,63}(?<!-)(\.(?!-)[a-zA-Z0-9-]{1,63}(?<!-))*\Z")
_LOOKS_LIKE: Final = "it looks like unix:PATH or 127.0.0.1:PORT"


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server listens: `unix:PATH`, or a host and a port."""

    path: str = ""
    host: str = ""
    port: int = 0

    @classmethod
    def parse(cls, text: str, *, secure: bool = False) -> Address:
        """Read `unix:PATH` or `HOST:PORT`; IPv6 stands in brackets.

        Args:
            text: the address.
            secure: whether TLS is spoken there; only then it may be on another machine, and have a DNS name.

        Raises:
            ConfigurationError: malformed, or neither loopback nor a unix socket where there is no TLS.
        """
        if text.startswith("unix:"):
            path = "/" + text.removeprefix("unix:").lstrip("/") if text.startswith("unix:/") else text[5:]
            if not path or len(os.fsencode(path)) > _UNIX_PATH_BYTES or "\0" in path:
                raise ConfigurationError(
                    f"not the path of a unix socket: {path!r}", hint=f"it has 1 to {_UNIX_PATH_BYTES} bytes"
                )
            return cls(path=path)
        host, colon, port = text.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
            raise ConfigurationError(f"not an address: {text!r}", hint=_LOOKS_LIKE)
        ip = _ip(host)
        if secure and ip is None and not _HOST_NAME.match(host):
            raise ConfigurationError(f"not an address: {text!r}", hint=_LOOKS_LIKE)
        if not secure and not (host == "localhost" or (ip is not None and ip.is_loopback)):
            raise ConfigurationError(
                f"{text} is not loopback: without TLS a node listens on loopback or a unix socket only",
                hint="TLS comes with a network: dim network join; without one use 127.0.0.1:PORT or unix:PATH",
            )
        return cls(host="127.0.0.1" if host == "localhost" else host, port=int(port))

    def __str__(self) -> str:
        """Give the text that gRPC and people read."""
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
