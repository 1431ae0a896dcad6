"""Who can read what is added to a Kubo: the rule that keeps data off a public swarm.

A Kubo with a swarm key talks only to peers that hold the same key, but its RPC does not say whether it has
one. So a Kubo counts as private when either of these is shown (docs/decisions/0008):

- *key*: its repository lies on this machine and holds a `swarm.key`, and its config there names the peer
  that answered; or
- *closed*: its config has no bootstrap peers, no delegated routers, no AutoConf and no mDNS, and every
  address it listens on and every peer it has is a private one (loopback, RFC 1918, 100.64/10, link-local, ULA).

Everything else is public, a Kubo with a key on another machine included: the person then says so (`--public`).
"""

from __future__ import annotations

import ipaddress
import json
from pathlib import Path
from typing import Any, Final

from dim_pipelines.content.kubo_rpc import Json, KuboRpc
from dim_pipelines.errors import ContentError

_SHARED_NET: Final = ipaddress.ip_network("100.64.0.0/10")


def is_private(rpc: KuboRpc, peer_id: str) -> bool:
    """Tell whether a Kubo is shown to be private, by the rule above; when in doubt it is not."""
    try:
        [repo] = rpc.json("/repo/stat", options={"size-only": "true"})
        if _has_key(Path(str(repo.get("RepoPath", ""))), peer_id):
            return True
        [config] = rpc.json("/config/show")
        [listening] = rpc.json("/swarm/addrs/listen")
        [swarm] = rpc.json("/swarm/peers")
    except (ContentError, ValueError):
        return False
    peers = [str(peer.get("Addr", "")) for peer in swarm.get("Peers") or []]
    return is_closed(config, [*(listening.get("Strings") or []), *peers])


def _has_key(repository: Path, peer_id: str) -> bool:
    try:
        config = json.loads((repository / "config").read_bytes())
        return bool(config["Identity"]["PeerID"] == peer_id and (repository / "swarm.key").is_file())
    except (OSError, ValueError, KeyError, TypeError):
        return False


def is_closed(config: Json, addresses: list[str]) -> bool:
    """Tell whether a config finds no strangers and all these multiaddrs are private."""
    found: list[Any] = [
        config.get("Bootstrap"),
        _at(config, "Routing", "DelegatedRouters"),
        _at(config, "AutoConf", "Enabled") is not False,
        _at(config, "Discovery", "MDNS", "Enabled") is not False,
    ]
    return not any(found) and all(_is_private_address(address) for address in addresses)


def _at(config: Any, *path: str) -> Any:
    for name in path:
        config = config.get(name) if isinstance(config, dict) else None
    return config


def _is_private_address(multiaddr: str) -> bool:
    parts = multiaddr.split("/")
    if multiaddr == "/p2p-circuit":
        return True  # listens through peers, which are looked at themselves
    if len(parts) < 3 or parts[1] not in ("ip4", "ip6"):
        return False
    try:
        address = ipaddress.ip_address(parts[2])
    except ValueError:
        return False
    return address.is_loopback or address.is_link_local or address.is_private or address in _SHARED_NET
