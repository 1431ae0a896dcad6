"""The process's one event loop in a thread, as a resource.

The content store and the node pool live in one loop, whichever resource is built first; so a process has
one portal, made at first use and closed when the process ends.
"""

import atexit
from collections.abc import Generator
from contextlib import contextmanager
from functools import cache

import dagster as dg

from dim_pipelines.dispatch.portal import Portal


@cache
def process_portal() -> Portal:
    """Give this process's portal."""
    portal = Portal()
    atexit.register(portal.close)
    return portal


class PortalResource(dg.ConfigurableResource[Portal]):
    """The bridge from Dagster's threads to asyncio; has no settings."""

    @contextmanager
    def yield_for_execution(self, context: dg.InitResourceContext) -> Generator[Portal, None, None]:
        """Give the process's portal."""
        yield process_portal()
