"""What a daemon is at the moment: its owner's controls, its models, its speeds, its network; and what follows of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Final, Protocol

from dim_pipelines.domain.advertisement import Advertisement, Reach, Speed
from dim_pipelines.domain.cid import Cid
from dim_pipelines.domain.node import NodeDescription
from dim_pipelines.node.advertising import advertise, describe
from dim_pipelines.node.controls_file import ControlsFile
from dim_pipelines.node.lifetime import NodeAddress
from dim_pipelines.node.speeds import SpeedBook
from dim_pipelines.wire.v1 import node_pb2

log = logging.getLogger(__name__)

LOOK_EVERY_S: Final = 1.0
"""How often the owner's controls and the hours are looked at, in seconds."""


class Sessions(Protocol):
    """The service's sessions, as far as they are used here."""

    draining: bool

    async def hand_back(self, reason: str) -> None:
        """End all sessions in order."""
        ...


class Models(Protocol):
    """The models on the disk."""

    def models(self) -> Sequence[Cid]:
        """List them, most recently used first."""
        ...


class Network(Protocol):
    """The node's network, as far as it is used here."""

    @property
    def reached(self) -> Reach | None:
        """How the node is reached; None while nobody has said."""
        ...

    def changed(self) -> None:
        """Publish the node's record soon."""
        ...

    @property
    def owner(self) -> str:
        """Whom the node belongs to."""
        ...

    async def status(self, message: node_pb2.NodeStatus) -> None:
        """Add what is known of the network."""
        ...


class NodeState:
    """A running daemon's state.

    Attributes:
        network: the node's network; None without one.
        announce: announces the daemon's address anew.
        local_time: gives the node's local time with its zone.
    """

    def __init__(
        self,
        base: NodeDescription,
        controls: ControlsFile,
        models: Models,
        speeds: SpeedBook,
        *,
        local_time: Callable[[], datetime] = lambda: datetime.now().astimezone(),
    ) -> None:
        """Keep the parts.

        Args:
            base: what does not change while the daemon runs.
            controls: the owner's controls.
            models: the models on the disk.
            speeds: the measured speeds.
            local_time: gives the node's local time with its zone.
        """
        self.network: Network | None = None
        self.announce: Callable[[NodeAddress], None] = lambda address: None
        self.local_time = local_time
        self._base = base
        self._controls = controls
        self._models = models
        self._speeds = speeds

    def describe(self) -> NodeDescription:
        """Describe the node, without `draining`."""
        base = replace(self._base, owner=self.network.owner) if self.network else self._base
        return describe(base, self._controls.current(), self.local_time(), self._models.models(), self._speeds.speeds)

    def advertise(self, *, draining: bool) -> Advertisement:
        """Give the advertisement of the node's record."""
        models = self._models.models()
        return advertise(self.describe(), self._controls.current(), self.local_time(), models, draining=draining)

    def measured(self, speed: Speed) -> None:
        """Keep a measured speed, and say so."""
        self._speeds.keep(speed)
        self._say_changed()

    async def status(self) -> node_pb2.NodeStatus:
        """Say what the node knows of itself besides its description and its sessions."""
        controls = self._controls.current()
        message = node_pb2.NodeStatus(hours=controls.hours.text, controls_error=self._controls.error)
        if self.network is not None:
            await self.network.status(message)
        return message

    async def watch(self, sessions: Sessions) -> None:
        """Act when the owner's controls, the hours or the models change, until cancelled.

        A node that closes hands its sessions back: what runs is finished first.
        """
        closed, said = "", self._said(sessions)
        handing_back: asyncio.Task[None] | None = None
        try:
            while True:
                before, closed = closed, self._controls.current().closed(self.local_time())
                if closed and not before:
                    log.info("no work is taken: %s", closed)
                    handing_back = asyncio.create_task(sessions.hand_back(closed))
                elif before and not closed:
                    log.info("work is taken again")
                if (now := self._said(sessions)) != said:
                    said = now
                    self._say_changed()
                await asyncio.sleep(LOOK_EVERY_S)
        finally:
            if handing_back:
                handing_back.cancel()

    def reached(self, here: NodeAddress) -> None:
        """Announce how the node is reached."""
        if self.network is not None:
            self.announce(replace(here, reach=self.network.reached or ""))

    def _said(self, sessions: Sessions) -> Advertisement:
        """Give what is advertised, but for the order of the models: each task changes it."""
        said = self.advertise(draining=sessions.draining)
        return said.model_copy(update={"models": tuple(sorted(said.models))})

    def _say_changed(self) -> None:
        if self.network is not None:
            self.network.changed()
