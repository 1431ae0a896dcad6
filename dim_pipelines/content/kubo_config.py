"""The config of a Kubo for DIM: private, durable, closed to strangers; pure.

Names go through a router for the LAN alone: with the stock `dht` router a node that missed a put answers from its
own store, stale, and never asks its peers (measured with Kubo 0.43).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from dim_pipelines.errors import ConfigurationError

ANY_PORT: Final = "/ip4/127.0.0.1/tcp/0"
"""Loopback, a free port."""
_LAN: Final = "Lan"


def private_config(
    config: dict[str, Any],
    *,
    api: str = ANY_PORT,
    listen: Sequence[str] = (ANY_PORT,),
    peers: Iterable[str] = (),
    secret: str = "",
) -> dict[str, Any]:
    """Give the config of a Kubo with DIM's settings put in.

    Args:
        config: what is there; what DIM does not set is kept.
        api: multiaddr of the RPC.
        listen: multiaddrs of the swarm; none: it only dials out.
        peers: multiaddrs with `/p2p/ID` that it keeps connections to.
        secret: the bearer secret that the RPC asks for; none when empty.

    Raises:
        ConfigurationError: a peer's address names no peer.
    """
    allowed = {"dim": {"AuthSecret": f"bearer:{secret}", "AllowedPaths": ["/api/v0"]}}
    own = (config.get("Identity") or {}).get("PeerID")
    methods = ("find-providers", "provide", "find-peers", "get-ipns", "put-ipns")
    settings: dict[str, dict[str, Any]] = {
        "API": {"Authorizations": allowed if secret else {}},
        "AutoConf": {"Enabled": False},
        "DNS": {"Resolvers": {}},
        "Routing": {
            "Type": "custom",
            "DelegatedRouters": [],
            "LoopbackAddressesOnLanDHT": True,
            "Routers": {
                _LAN: {
                    "Type": "dht",
                    "Parameters": {"Mode": "server", "PublicIPNetwork": False, "AcceleratedDHTClient": False},
                }
            },
            "Methods": {method: {"RouterName": _LAN} for method in methods},
        },
        "Ipns": {"DelegatedPublishers": []},
        "Addresses": {"API": api, "Gateway": [], "Swarm": list(listen)},
        "Discovery": {"MDNS": {"Enabled": False}},
        "AutoTLS": {"Enabled": False},
        "HTTPRetrieval": {"Enabled": False},
        "Version": {"SwarmCheckEnabled": False},
        "Peering": {"Peers": [each for each in read_peers(peers) if each["ID"] != own]},
        "Swarm": {
            "DisableNatPortMap": True,
            "RelayClient": {"Enabled": False},
            "RelayService": {"Enabled": False},
            "Transports": {
                "Network": {
                    "QUIC": False,
                    "Relay": False,
                    "WebTransport": False,
                    "WebRTCDirect": False,
                    "Websocket": False,
                }
            },
        },
        "Plugins": {"Plugins": {"telemetry": {"Disabled": True}}},
        "Pubsub": {"Enabled": True},
    }
    merged = {**config, "Bootstrap": []}
    for section, values in settings.items():
        merged[section] = {**(config.get(section) or {}), **values}
    for mount in merged["Datastore"]["Spec"]["mounts"]:
        if mount.get("type") == "flatfs":
            mount["sync"] = True
    return merged


def read_peers(peers: Iterable[str]) -> list[dict[str, Any]]:
    """Give `Peering.Peers` of multiaddrs, those of one peer together.

    Raises:
        ConfigurationError: one has no `/p2p/ID` at its end.
    """
    found: dict[str, list[str]] = {}
    for peer in peers:
        address, separator, identity = peer.rpartition("/p2p/")
        if not separator or not identity or "/" in identity or not address.startswith("/"):
            raise ConfigurationError(
                f"not the address of a Kubo of the swarm: {peer[:200]!r}",
                hint="it is like /ip4/10.0.0.2/tcp/4001/p2p/12D3Koo…",
            )
        if address not in found.setdefault(identity, []):
            found[identity].append(address)
    return [{"ID": identity, "Addrs": addresses} for identity, addresses in found.items()]
