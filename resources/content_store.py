"""The content store as a resource."""

import os
from collections.abc import Generator
from contextlib import contextmanager

import dagster as dg
from pydantic import Field

from dim_pipelines.content.open import open_store
from dim_pipelines.content.store import ContentStore
from dim_pipelines.orchestrator.running import find_running
from dim_pipelines.resources.portal import process_portal
from dim_pipelines.settings import Home


class ContentStoreResource(dg.ConfigurableResource[ContentStore]):
    """Where inputs, models and results are kept by CID."""

    ipfs: str = Field(
        default="",
        description="`embedded`, or the address of a Kubo (/ip4/127.0.0.1/tcp/5001). "
        "Empty: the variable DIM_IPFS, else what `dim up` uses for this DIM_HOME, else `embedded`.",
    )

    def resolve(self) -> str:
        """Give the address: configured, else from DIM_IPFS, else of a running `dim up`, else `embedded`."""
        return resolve_ipfs(self.ipfs)

    @contextmanager
    def yield_for_execution(self, context: dg.InitResourceContext) -> Generator[ContentStore, None, None]:
        """Open the store in the process's loop; close it when the run ends."""
        portal = process_portal()
        store = portal.call(open_store(self.resolve(), Home.at()))
        try:
            yield store
        finally:
            portal.call(store.close())


def resolve_ipfs(configured: str) -> str:
    """Give the address: configured, else from DIM_IPFS, else of a running `dim up`, else `embedded`."""
    named = configured or os.environ.get("DIM_IPFS", "")
    if named:
        return named
    running = find_running(Home.at())
    return running.ipfs if running is not None else "embedded"
