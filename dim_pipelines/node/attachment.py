"""A node that can only dial out: one standing stream to one orchestrator, and tunnels when it is told of callers.

It attaches to whichever orchestrator answers first and stays there; when that one goes, the others are tried at once.
A tunnel ends at the node's own server, where TLS with the caller begins: the orchestrator in between decides nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import grpc

from dim_pipelines.errors import DimError, NodeUnreachable, ProtocolError
from dim_pipelines.wire.channel import open_channel
from dim_pipelines.wire.pump import DIAL, Moved, Relay, connect_own, open_tunnel_call, pump
from dim_pipelines.wire.status import from_rpc_error
from dim_pipelines.wire.tls import ClientKeys, PinnedPeer
from dim_pipelines.wire.v1 import link_pb2, link_pb2_grpc

log = logging.getLogger(__name__)

PULSE_S: Final = 2.0
"""How often the node says that it lives, in seconds."""
SILENT_S: Final = 6.0
"""Silence after which the orchestrator is lost, in seconds."""
MAX_TUNNELS: Final = 16
"""Tunnels that the node takes at a time, whatever an orchestrator asks."""
STAGGER_S: Final = 0.5
"""How long one orchestrator is waited for before the next is asked as well, in seconds."""
ATTACH_S: Final = 10.0
"""How long an orchestrator may take to answer, in seconds."""
_PAUSES: Final = (0.1, 2.0)  # seconds before a new round: the first, and the longest; one round in 5 s is promised

AttachCall = grpc.aio.StreamStreamCall[link_pb2.AttachMessage, link_pb2.AttachEvent]


@dataclass(frozen=True, slots=True)
class Door:
    """One way to an orchestrator: its IPNS name, its label for people, and what makes a channel to it."""

    name: str
    label: str
    open: Callable[[], grpc.aio.Channel]


@dataclass(frozen=True, slots=True)
class AttachmentState:
    """How the attachment stands, for `dim node status`.

    Attributes:
        orchestrator: IPNS name of the orchestrator that the node is attached to; empty when to none.
        label: its name for people.
        since_ms: Unix time in milliseconds since when it is so.
        tunnels: how many are open.
        error: why the last attachment ended or the last try failed; empty when nothing has.
    """

    orchestrator: str
    label: str
    since_ms: int
    tunnels: int
    error: str


class Attachment:
    """Keeps a node attached while `run` runs.

    Attributes:
        attached_to: IPNS name of the orchestrator; empty while there is none. For the node's record.
        moved: bytes through all tunnels so far.
    """

    def __init__(
        self,
        name: str,
        boot: bytes,
        doors: Callable[[], Sequence[Door]],
        server: str,
        *,
        changed: Callable[[], None],
        max_tunnels: int = MAX_TUNNELS,
        choice: random.Random | None = None,
    ) -> None:
        """Prepare; nothing is dialled before `run`.

        Args:
            name: the node's IPNS name.
            boot: of its record.
            doors: gives the ways to all orchestrators, as the newest roster names them.
            server: where the node's own TLS server listens: `unix:PATH`, or `HOST:PORT`.
            changed: is called when `attached_to` has changed, so that the record is published anew.
            max_tunnels: the most tunnels at a time.
            choice: draws the order of orchestrators and the pauses.
        """
        self.attached_to = ""
        self.moved = Moved()
        self._name, self._boot, self._doors, self._server = name, boot, doors, server
        self._changed = changed
        self._max_tunnels = max_tunnels
        self._choice = choice or random.Random()
        self._label, self._error, self._since_ms = "", "", _now_ms()
        self._tunnels: set[asyncio.Task[None]] = set()

    @property
    def state(self) -> AttachmentState:
        """How it stands."""
        return AttachmentState(self.attached_to, self._label, self._since_ms, len(self._tunnels), self._error)

    async def unused(self) -> None:
        """Wait until no tunnel is open."""
        while self._tunnels:
            await asyncio.wait(set(self._tunnels))

    async def run(self) -> None:
        """Attach, answer, and attach anew, until cancelled; then the tunnels end, too."""
        pause, avoided = _PAUSES[0], ""
        try:
            while True:
                doors = arrange(self._doors(), avoided, self._choice)
                avoided = ""
                try:
                    async with contextlib.AsyncExitStack() as stack:
                        door, call, dials = await self._attach(doors, stack)
                        pause, avoided = _PAUSES[0], door.name
                        self._stands(door)
                        await self._hold(call, dials)
                except DimError as error:
                    if error.message != self._error:  # once, and not in every round of a long night
                        log.warning("not attached: %s", error.message)
                    self._error = error.message
                finally:
                    self._stands(None)
                # Whoever lost the same orchestrator does not come to the next one in the same moment.
                await asyncio.sleep(pause * self._choice.uniform(0.5, 1.5))
                pause = min(pause * 2, _PAUSES[1])
        finally:
            for task in self._tunnels:
                task.cancel()
            if self._tunnels:
                await asyncio.wait(self._tunnels)

    def _stands(self, door: Door | None) -> None:
        name = door.name if door else ""
        if name == self.attached_to:
            return
        self.attached_to, self._label, self._since_ms = name, door.label if door else "", _now_ms()
        if door:
            self._error = ""
            log.info("attached to %s", door.label or door.name)
        self._changed()

    async def _attach(
        self, doors: Sequence[Door], stack: contextlib.AsyncExitStack
    ) -> tuple[Door, AttachCall, grpc.aio.Channel]:
        """Ask one orchestrator after the other without waiting for the silent ones; the first that answers is taken.

        Raises:
            NodeUnreachable: none answers.
        """
        if not doors:
            raise NodeUnreachable("the roster names no orchestrator with an address")
        tries: dict[asyncio.Task[AttachCall], tuple[Door, contextlib.AsyncExitStack]] = {}
        errors: list[DimError] = []
        waiting = list(doors)
        try:
            while True:
                if waiting:
                    door, own = waiting.pop(0), contextlib.AsyncExitStack()
                    tries[asyncio.create_task(self._ask(door, own))] = door, own
                pending = [task for task in tries if not task.done()]
                if not pending and not waiting:
                    raise errors[-1]
                done, _ = await asyncio.wait(
                    pending, timeout=STAGGER_S if waiting else None, return_when=asyncio.FIRST_COMPLETED
                )
                for task in done:
                    try:
                        call = task.result()
                    except DimError as error:
                        errors.append(error)
                        continue
                    door, own = tries.pop(task)
                    dials = door.open()
                    stack.push_async_callback(dials.close, None)
                    stack.push_async_callback(own.aclose)
                    return door, call, dials
        finally:
            for task in tries:
                task.cancel()
            for task, (_, own) in tries.items():
                with contextlib.suppress(DimError, asyncio.CancelledError):  # nobody asks for what it found any more
                    await task
                await own.aclose()

    async def _ask(self, door: Door, own: contextlib.AsyncExitStack) -> AttachCall:
        channel = door.open()
        own.push_async_callback(channel.close, None)
        call: AttachCall = link_pb2_grpc.LinkServiceStub(channel).Attach(None)
        own.callback(call.cancel)
        try:
            async with asyncio.timeout(ATTACH_S):
                await call.write(link_pb2.AttachMessage(hello=link_pb2.Hello(name=self._name, boot=self._boot)))
                event = await _read(call)
        except TimeoutError as error:
            raise NodeUnreachable(f"orchestrator {door.label or door.name} does not answer") from error
        except asyncio.InvalidStateError as error:
            raise NodeUnreachable(f"orchestrator {door.label or door.name} hung up") from error
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error
        if event.WhichOneof("event") != "attached":
            raise ProtocolError("the orchestrator's first word was not Attached")
        return call

    async def _hold(self, call: AttachCall, dials: grpc.aio.Channel) -> None:
        """Answer until the orchestrator goes.

        Raises:
            DimError: why it went.
        """
        pulsing = asyncio.create_task(_pulse(call))
        try:
            while True:
                try:
                    async with asyncio.timeout(SILENT_S):
                        event = await _read(call)
                except TimeoutError as error:
                    raise NodeUnreachable(f"the orchestrator was silent for {SILENT_S:.0f} s") from error
                except grpc.aio.AioRpcError as error:
                    raise from_rpc_error(error) from error
                if event.WhichOneof("event") == "dial_back":
                    self._dial(event.dial_back.session, dials)
        finally:
            pulsing.cancel()
            await asyncio.wait([pulsing])

    def _dial(self, session: bytes, dials: grpc.aio.Channel) -> None:
        if len(self._tunnels) >= self._max_tunnels:
            log.warning("a caller is not answered: %d tunnels are open, the limit", len(self._tunnels))
            return
        task = asyncio.create_task(self._carry(session, dials))
        self._tunnels.add(task)
        task.add_done_callback(self._tunnels.discard)

    async def _carry(self, session: bytes, dials: grpc.aio.Channel) -> None:
        """Carry one tunnel to the node's own server."""
        try:
            with await connect_own(self._server) as local:
                call = open_tunnel_call(dials, DIAL)
                with contextlib.suppress(asyncio.InvalidStateError, grpc.aio.AioRpcError):  # the pump says why
                    await call.write(link_pb2.Chunk(session=session).SerializeToString())
                await pump(local, call, self.moved)
        except (DimError, OSError) as error:
            log.info("a tunnel broke: %s", error)


def doors_to(orchestrators: Sequence[Relay], client: ClientKeys) -> list[Door]:
    """Give the ways to orchestrators of the roster, one for each of their addresses.

    Args:
        orchestrators: as `identity.membership` gives them.
        client: the node's client certificate.
    """

    def to(address: str, peer: PinnedPeer) -> Callable[[], grpc.aio.Channel]:
        return lambda: open_channel(address, peer=peer, client=client)

    return [
        Door(each.name, each.label, to(address, PinnedPeer(each.name, each.certificate)))
        for each in orchestrators
        for address in each.addresses
    ]


def arrange(doors: Sequence[Door], avoided: str, choice: random.Random) -> list[Door]:
    """Draw the order in which orchestrators are asked: the one that has just gone comes last."""
    drawn = list(doors)
    choice.shuffle(drawn)
    return sorted(drawn, key=lambda door: door.name == avoided)


async def _pulse(call: AttachCall) -> None:
    with contextlib.suppress(asyncio.InvalidStateError, grpc.aio.AioRpcError):  # the reader learns why it ended
        while True:
            await call.write(link_pb2.AttachMessage(pulse=link_pb2.Pulse()))
            await asyncio.sleep(PULSE_S)


async def _read(call: AttachCall) -> link_pb2.AttachEvent:
    event = await call.read()
    if not isinstance(event, link_pb2.AttachEvent):
        raise NodeUnreachable("the orchestrator ended the attachment")
    return event


def _now_ms() -> int:
    return int(time.time() * 1000)
