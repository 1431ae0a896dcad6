"""The nodes that a batch may use, by address; later a roster takes the addresses' place."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from dim_pipelines.dispatch.node_client import CALL_S, NodeClient
from dim_pipelines.domain.node import NodeDescription
from dim_pipelines.errors import ConfigurationError, DimError, NodeUnreachable


class NodePool:
    """Clients of the nodes at some addresses. Made and used in one event loop.

    Attributes:
        addresses: where the nodes listen, each once.
    """

    def __init__(self, addresses: Sequence[str]) -> None:
        """Make a client per address; nothing connects yet.

        Raises:
            ConfigurationError: an address is malformed or not local.
        """
        self.addresses = tuple(dict.fromkeys(addresses))
        self._clients = [NodeClient(address) for address in self.addresses]
        self._named: dict[str, NodeClient] = {}

    async def describe(self, timeout: float = CALL_S) -> dict[str, NodeDescription | DimError]:
        """Ask every node what it is, all at once.

        Returns:
            Node name → description; a node that fails stands under its address, with the error. So does a second
            node of one name: results are counted by name.
        """
        answers = await asyncio.gather(*(client.describe(timeout) for client in self._clients), return_exceptions=True)
        described: dict[str, NodeDescription | DimError] = {}
        self._named = {}
        for client, answer in zip(self._clients, answers, strict=True):
            if isinstance(answer, DimError):
                described[client.address] = answer
            elif isinstance(answer, BaseException):
                raise answer
            elif answer.name in self._named:
                other = self._named[answer.name].address
                described[client.address] = ConfigurationError(
                    f"it is called {answer.name}, like the node at {other}", hint="give nodes different names"
                )
            else:
                described[answer.name] = answer
                self._named[answer.name] = client
        return described

    def client(self, name: str) -> NodeClient:
        """Give the client of a node that `describe` named.

        Raises:
            NodeUnreachable: it named no such node.
        """
        try:
            return self._named[name]
        except KeyError:
            raise NodeUnreachable(f"there is no node {name} in the pool") from None

    async def close(self) -> None:
        """Close all channels."""
        await asyncio.gather(*(client.close() for client in self._clients))
