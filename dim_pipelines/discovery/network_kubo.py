"""The Kubo of a home, as its network wants it: the network's swarm key, its peers, and who listens."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from pathlib import Path

from dim_pipelines.content.kubo_address import REPOSITORY
from dim_pipelines.content.kubo_config import ANY_PORT
from dim_pipelines.content.kubo_daemon import KuboDaemon
from dim_pipelines.identity.membership import Membership
from dim_pipelines.settings import Home


async def start_kubo(
    home: Home, *, listen: Sequence[str] | None = None, peers: Sequence[str] = (), binary: Path | None = None
) -> KuboDaemon:
    """Start the home's own Kubo; the home of an orchestrator keeps its addresses for those who join.

    Args:
        home: a member's home, or one without a network, whose Kubo then has a swarm of its own.
        listen: multiaddrs of the swarm. When left out: loopback where all peers are there (or none is known),
            else nothing, and it only dials out.
        peers: multiaddrs of further Kubos to keep connections to.
        binary: the `ipfs` program; looked for when left out.

    Raises:
        ConfigurationError: as `KuboDaemon.start`; or the home's membership is damaged.
        ContentUnavailable: Kubo does not answer in time.
    """
    membership = Membership.load(home)
    known = list(dict.fromkeys([*peers, *(membership.kubo_peers if membership else ())]))
    if listen is None:
        listen = (ANY_PORT,) if all(_on_loopback(peer) for peer in known) else ()
    key = membership.swarm_key.hex() if membership else ""
    daemon = await KuboDaemon.start(
        home.root / REPOSITORY, binary, swarm_key=key or None, peers=known, listen=tuple(listen)
    )
    if membership is not None and "orchestrator" in membership.roles and daemon.swarm_addresses:
        identity = daemon.swarm_addresses[0].rpartition("/p2p/")[2]
        others = [peer for peer in known if not peer.endswith(f"/p2p/{identity}")]
        membership.keep_peers([*daemon.swarm_addresses, *others])
    return daemon


def swarm_listen(address: str) -> tuple[str, ...] | None:
    """Give where the Kubo beside a server is heard: on the server's own addresses, a port of its own.

    Args:
        address: `HOST:PORT` of the server; empty where there is none.

    Returns:
        Multiaddrs; None (as `start_kubo` chooses) where the server is heard on loopback alone, or by a name.
    """
    host = address.rpartition(":")[0].removeprefix("[").removesuffix("]")
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return None
    return None if ip.is_loopback else (f"/ip{ip.version}/{ip}/tcp/0",)


def _on_loopback(multiaddr: str) -> bool:
    return multiaddr.startswith(("/ip4/127.", "/ip6/::1/"))
