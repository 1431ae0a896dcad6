"""The channels to servers: one policy of sizes and keepalive for both ends, plaintext on this machine only."""

from __future__ import annotations

from typing import Final

import grpc

from dim_pipelines.errors import ConfigurationError
from dim_pipelines.wire.address import Address
from dim_pipelines.wire.renewal import RenewingChannel
from dim_pipelines.wire.tls import ClientKeys, PinnedPeer, channel_credentials

__all__ = ["CLIENT_OPTIONS", "KEEPALIVE_MS", "MAX_MESSAGE_BYTES", "SERVER_OPTIONS", "Address", "open_channel"]

MAX_MESSAGE_BYTES: Final = 8 << 20
"""The largest message: 4 MiB of blocks and their names, with room."""
KEEPALIVE_MS: Final = 10_000
"""How often an idle connection is probed, in milliseconds; both ends allow it."""

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


def open_channel(address: str, *, peer: PinnedPeer | None = None, client: ClientKeys | None = None) -> grpc.aio.Channel:
    """Open a channel; it connects when it is first used and again after a loss, with growing pauses.

    A channel whose client certificate is renewed shows the new one with its next RPC; RPCs under way go on.

    Args:
        address: `unix:PATH`, or `HOST:PORT`; without `peer` on loopback.
        peer: the server to expect; TLS is spoken with it, over a unix socket too (a tunnel's end is one).
        client: the caller's certificate; none at a door. Only with `peer`.

    Raises:
        ConfigurationError: the address is malformed, or not local where there is no `peer`.
    """
    where = Address.parse(address, secure=peer is not None)
    if peer is None:
        if client is not None:
            raise ConfigurationError("a client certificate is shown to a known server only")
        return grpc.aio.insecure_channel(str(where), options=list(CLIENT_OPTIONS))
    options = [*CLIENT_OPTIONS, ("grpc.ssl_target_name_override", peer.name)]

    def connect(pair: tuple[bytes, bytes] | None) -> grpc.aio.Channel:
        return grpc.aio.secure_channel(str(where), channel_credentials(peer, pair), options=options)

    return connect(None) if client is None else RenewingChannel(client.current, connect)
