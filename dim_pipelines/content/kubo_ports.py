"""Ports of multiaddrs: which one Kubo was given, and whether one can be had again."""

from __future__ import annotations

import socket
from collections.abc import Sequence


def with_port(wanted: str, listens: Sequence[str]) -> str:
    """Give a listening multiaddr with the port that Kubo got where 0 was asked for."""
    head, zero, _ = wanted.partition("/tcp/0")
    if not zero:
        return wanted
    everywhere = head in ("/ip4/0.0.0.0", "/ip6/::")
    kind = head.split("/")[1]
    for each in listens:
        if each.startswith(head + "/tcp/") or (everywhere and each.startswith(f"/{kind}/") and "/tcp/" in each):
            return f"{head}/tcp/{each.split('/tcp/')[1].split('/')[0]}"
    return wanted


def is_free(multiaddr: str) -> bool:
    """Tell whether a port can be listened on; one that cannot be looked at counts as taken."""
    parts = multiaddr.split("/")
    if len(parts) < 5 or parts[1] not in ("ip4", "ip6") or parts[3] != "tcp" or not parts[4].isdigit():
        return False
    with socket.socket(socket.AF_INET if parts[1] == "ip4" else socket.AF_INET6) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((parts[2], int(parts[4])))
        except (OSError, OverflowError):
            return False
    return True
