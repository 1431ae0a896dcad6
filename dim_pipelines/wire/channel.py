"""Addresses, and the channels to them: one policy of sizes and keepalive for both ends.

Before networks exist there is no TLS, so an address is loopback or a unix socket, on both ends.
"""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass
from typing import Final

import grpc

from dim_pipelines.errors import ConfigurationError

MAX_MESSAGE_BYTES: Final = 8 << 20
"""The largest message: 4 MiB of blocks and their names, with room."""
KEEPALIVE_MS: Final = 10_000
"""How often an idle connection is probed, in milliseconds; both ends allow it."""
_UNIX_PATH_BYTES: Final = 107  # sun_path of unix(7), less the final NUL

_SHARED: Final = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
)
CLIENT_OPTIONS: Final = (
    *_SHARED,
    # Channels to one address share a connection otherwise, and one stalled stream stalls them all.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 5_000),
    ("grpc.enable_http_proxy", 0),
)
SERVER_OPTIONS: Final = (
    *_SHARED,
    # Without this a second daemon on a port that is in use starts, and gets half of the connections.
    ("grpc.so_reuseport", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.max_concurrent_streams", 1024),
)


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server listens: `unix:PATH`, or a loopback host and a port."""

    path: str = ""
    host: str = ""
    port: int = 0

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read `unix:PATH` or `HOST:PORT`.

        Raises:
            ConfigurationError: malformed, or neither loopback nor a unix socket.
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
            raise ConfigurationError(f"not an address: {text!r}", hint="it looks like unix:PATH or 127.0.0.1:PORT")
        if not _is_loopback(host):
            raise ConfigurationError(
                f"{text} is not loopback: without TLS a node listens on loopback or a unix socket only",
                hint="TLS comes with networks; until then use 127.0.0.1:PORT or unix:PATH",
            )
        return cls(host="127.0.0.1" if host == "localhost" else host, port=int(port))

    def __str__(self) -> str:
        """Give the text that gRPC and people read."""
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def open_channel(address: str) -> grpc.aio.Channel:
    """Open a channel; it connects when it is first used and again after a loss, with growing pauses.

    Args:
        address: `unix:PATH`, or `HOST:PORT` on loopback.

    Raises:
        ConfigurationError: the address is malformed or not local.
    """
    return grpc.aio.insecure_channel(str(Address.parse(address)), options=list(CLIENT_OPTIONS))


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
