"""A node's way to the orchestrators of its network: channels that are kept, and the next one where one is silent."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

import grpc

from dim_pipelines.errors import DimError, NodeUnreachable
from dim_pipelines.wire.channel import open_channel
from dim_pipelines.wire.status import from_rpc_error
from dim_pipelines.wire.tls import ClientKeys, PinnedPeer
from dim_pipelines.wire.v1.orchestrator_pb2_grpc import OrchestratorServiceStub

if TYPE_CHECKING:
    from dim_pipelines.wire.v1.orchestrator_pb2_grpc import OrchestratorServiceAsyncStub

log = logging.getLogger(__name__)

CALL_S: Final = 5.0
"""How long an orchestrator may take to answer, in seconds."""
MAX_AT_ONCE: Final = 8
"""How many orchestrators are told something at most."""

Answer = TypeVar("Answer")
Call = Callable[["OrchestratorServiceAsyncStub"], Awaitable[Answer]]
"""What is asked of an orchestrator, given its stub."""


class Contact(Protocol):
    """An orchestrator, as the roster knows it."""

    @property
    def name(self) -> str:
        """Its IPNS name."""
        ...

    @property
    def label(self) -> str:
        """Its name for people."""
        ...

    @property
    def addresses(self) -> tuple[str, ...]:
        """`HOST:PORT` of its server."""
        ...

    @property
    def certificate(self) -> bytes:
        """DER that it shows."""
        ...


class Contacts:
    """Calls orchestrators; used by one event loop."""

    def __init__(
        self,
        orchestrators: Callable[[], Sequence[Contact]],
        client: Callable[[], ClientKeys],
        choice: random.Random | None = None,
    ) -> None:
        """Prepare; nothing is dialled yet.

        Args:
            orchestrators: gives those of the newest roster.
            client: gives the node's client certificate.
            choice: draws the order in which they are asked.
        """
        self._orchestrators = orchestrators
        self._client = client
        self._choice = choice or random.Random()
        self._channels: dict[tuple[str, str, bytes], grpc.aio.Channel] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._last = ""

    async def ask_one(self, call: Call[Answer], timeout_s: float = CALL_S) -> Answer:
        """Ask orchestrators in turn until one answers: the one that answered last, then the others in any order.

        Raises:
            NodeUnreachable: none answers, or the roster names none.
            DimError: one refused.
        """
        failed: DimError = NodeUnreachable("the roster names no orchestrator with an address")
        for contact in self.order():
            try:
                answer = await self.ask(contact, call, timeout_s)
            except NodeUnreachable as error:
                failed = error
                continue
            self._last = contact.name
            return answer
        raise failed

    async def tell_all(self, call: Call[Answer], timeout_s: float = CALL_S) -> list[Answer]:
        """Tell several orchestrators at once; give the answers of those that took it.

        Raises:
            DimError: none took it; this is what one of them said.
        """
        contacts = self.order()[:MAX_AT_ONCE]
        if not contacts:
            raise NodeUnreachable("the roster names no orchestrator with an address")
        results = await asyncio.gather(*(self.ask(each, call, timeout_s) for each in contacts), return_exceptions=True)
        answers: list[Answer] = []
        failed: BaseException | None = None
        for result in results:
            if not isinstance(result, BaseException):
                answers.append(result)
            elif not isinstance(result, DimError):
                raise result
            elif failed is None or isinstance(failed, NodeUnreachable):
                failed = result
        if not answers:
            assert failed is not None
            raise failed
        return answers

    def stub(self, contact: Contact) -> OrchestratorServiceAsyncStub:
        """Give a stub of one orchestrator, at its first address; the caller sees to deadlines and errors.

        Raises:
            NodeUnreachable: the roster knows no address of it.
            ConfigurationError: this node has no client certificate yet.
        """
        if not contact.addresses:
            raise NodeUnreachable(f"orchestrator {contact.label} has no address")
        return OrchestratorServiceStub(self._channel(contact, contact.addresses[0]))

    async def ask(self, contact: Contact, call: Call[Answer], timeout_s: float = CALL_S) -> Answer:
        """Ask one orchestrator, at each of its addresses until one answers.

        Raises:
            NodeUnreachable: it does not answer in time.
            DimError: what it said.
        """
        failed: DimError = NodeUnreachable(f"orchestrator {contact.label} has no address")
        for address in contact.addresses:
            try:
                async with asyncio.timeout(timeout_s):
                    return await call(OrchestratorServiceStub(self._channel(contact, address)))
            except TimeoutError as error:
                failed = NodeUnreachable(f"orchestrator {contact.label} at {address} does not answer")
                failed.__cause__ = error
            except grpc.aio.AioRpcError as error:
                translated = from_rpc_error(error)
                if not isinstance(translated, NodeUnreachable):
                    raise translated from error
                failed = translated
        raise failed

    def order(self) -> list[Contact]:
        """Give the orchestrators in the order in which they are asked."""
        drawn = [each for each in self._orchestrators() if each.addresses]
        self._choice.shuffle(drawn)
        return sorted(drawn, key=lambda each: each.name != self._last)

    async def close(self) -> None:
        """Close all channels."""
        closing = [channel.close(None) for channel in self._channels.values()]
        self._channels.clear()
        await asyncio.gather(*closing, *self._closing, return_exceptions=True)

    def _channel(self, contact: Contact, address: str) -> grpc.aio.Channel:
        key = (contact.name, address, contact.certificate)
        if key not in self._channels:
            self._forget_others()
            peer = PinnedPeer(contact.name, contact.certificate)
            self._channels[key] = open_channel(address, peer=peer, client=self._client())
        return self._channels[key]

    def _forget_others(self) -> None:
        """Close the channels to servers that the roster does not name any more."""
        named = {(each.name, address, each.certificate) for each in self._orchestrators() for address in each.addresses}
        for key in self._channels.keys() - named:
            task = asyncio.ensure_future(self._channels.pop(key).close(None))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
