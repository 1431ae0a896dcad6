"""Which bus a word or an address of the command line names."""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dim_pipelines.bus.bus import Bus
from dim_pipelines.bus.memory import MemoryBus
from dim_pipelines.content.open import EMBEDDED, kubo_address
from dim_pipelines.settings import Home


def open_bus(ipfs: str, home: Home, network: str, key: Ed25519PrivateKey) -> Bus:
    """Open the bus that `--ipfs` names; nothing is sent yet.

    Args:
        ipfs: `embedded`: hints reach this process alone. `kubo`: the Kubo that another process of this home keeps
            running. Anything else: the address of a Kubo's RPC.
        home: where the home's own Kubo lies.
        network: IPNS name of the network's root key.
        key: the sender's.

    Raises:
        ConfigurationError: no Kubo of this home runs, or the address is wrong.
    """
    if ipfs == EMBEDDED:
        return MemoryBus(network, key)
    from dim_pipelines.bus.kubo import KuboBus

    return KuboBus(kubo_address(ipfs, home), network, key, home=home)
