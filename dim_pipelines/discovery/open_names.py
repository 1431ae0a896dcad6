"""Which name service a word or an address of the command line names."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from dim_pipelines.content.open import EMBEDDED, kubo_address
from dim_pipelines.discovery.embedded_names import EmbeddedNameService
from dim_pipelines.discovery.names import NameService
from dim_pipelines.settings import Home

NAMES: Final = "names"


def open_names(ipfs: str, home: Home) -> NameService:
    """Open the name service that `--ipfs` names; nothing is asked yet.

    Args:
        ipfs: `embedded`: a folder in the home. `kubo`: the Kubo that another process of this home keeps running.
            Anything else: the address of a Kubo's RPC.
        home: where the folder and the home's own Kubo lie.

    Raises:
        ConfigurationError: no Kubo of this home runs, or the address is wrong.
    """
    if ipfs == EMBEDDED:
        return EmbeddedNameService(names_folder(home))
    # Imported here: the HTTP client costs 0.1 s of start-up, and most homes are embedded.
    from dim_pipelines.discovery.kubo_names import KuboNameService

    return KuboNameService(kubo_address(ipfs, home), home=home)


def names_folder(home: Home) -> Path:
    """Give the folder of a home's records where it has no Kubo."""
    return home.root / NAMES
