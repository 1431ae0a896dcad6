"""The road of a node's record to the orchestrators themselves."""

from __future__ import annotations

from dim_pipelines.node.contacts import Contacts
from dim_pipelines.wire.v1 import orchestrator_pb2


class AnnounceRoad:
    """Sends the record to the orchestrators of the roster.

    Attributes:
        state: what one of them last said of the node: SEEN | VERIFIED | ELIGIBLE | SUSPECT | GONE.
        reason: why.
    """

    def __init__(self, contacts: Contacts) -> None:
        """Send through these contacts."""
        self._contacts = contacts
        self.state = ""
        self.reason = ""

    async def send(self, name: str, raw: bytes) -> None:
        """Send a record; one orchestrator that takes it is enough.

        Raises:
            DimError: none took it.
        """
        request = orchestrator_pb2.AnnounceRequest(name=name, record=raw)
        replies = await self._contacts.tell_all(lambda stub: stub.Announce(request))
        self.state, self.reason = replies[0].state, replies[0].reason
