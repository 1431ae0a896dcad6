"""Which content store a word or an address of the command line names."""

from __future__ import annotations

from typing import Final

from dim_pipelines.content.store import ContentStore
from dim_pipelines.errors import ConfigurationError
from dim_pipelines.settings import Home

EMBEDDED: Final = "embedded"
KUBO: Final = "kubo"


async def open_store(ipfs: str, home: Home, *, public: bool = False) -> ContentStore:
    """Open the content store that `--ipfs` names.

    Args:
        ipfs: `embedded`: the folder in the home. `kubo`: the Kubo that another process of this home keeps
            running (`content/kubo_daemon`). Anything else: the address of a Kubo's RPC.
        home: where the embedded store and the home's own Kubo lie.
        public: allow adding to a Kubo that is not shown to be private.

    Raises:
        ConfigurationError: no Kubo of this home runs, or the address is wrong.
        ContentUnavailable: the store does not answer or cannot be opened.
    """
    if ipfs == EMBEDDED:
        from dim_pipelines.content.embedded import EmbeddedContentStore

        return await EmbeddedContentStore.open(home.store)
    # Imported here: the HTTP client costs 0.1 s of start-up, and most homes are embedded.
    from dim_pipelines.content.kubo import KuboContentStore

    return await KuboContentStore.connect(kubo_address(ipfs, home), public=public, home=home)


def kubo_address(ipfs: str, home: Home) -> str:
    """Give the address of the Kubo's RPC that `--ipfs` names, which is not `embedded`.

    Raises:
        ConfigurationError: it is `kubo`, and no Kubo of this home runs.
    """
    from dim_pipelines.content.kubo_repository import running_kubo

    if ipfs != KUBO:
        return ipfs
    running = running_kubo(home.root / KUBO)
    if running is None:
        raise ConfigurationError(
            f"no Kubo runs for {home.root}", hint="start one: dim up --ipfs kubo; or give an address to --ipfs"
        )
    return running
