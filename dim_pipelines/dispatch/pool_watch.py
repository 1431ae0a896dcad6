"""Keeps the nodes of a running batch in step with its pool: who comes joins, who leaves is drained, who is out is cut.

The choices are `scheduling.attendance` and `scheduling.ranking`; here is looking, telling the dispatcher, and passing
on what the batch saw of its nodes.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from random import Random
from typing import Final

from dim_pipelines.dispatch.candidates import classes_of, explain_nodes, standing_of
from dim_pipelines.dispatch.dispatcher import Dispatcher
from dim_pipelines.dispatch.node_link import NodeLink, Recruit
from dim_pipelines.dispatch.node_pool import NodePool, PoolNode
from dim_pipelines.errors import DimError
from dim_pipelines.scheduling.attendance import Link, Presence, Standing, attend
from dim_pipelines.scheduling.feasibility import Need
from dim_pipelines.scheduling.ranking import Explained, Weights, room
from dim_pipelines.scheduling.reputation import Reputation, Seen

REPORT_S: Final = 30.0
"""How often the batch passes on what it saw of its nodes, in seconds."""
ASK_AGAIN_S: Final = 30.0
"""How long a node that has refused the batch is left alone, in seconds: its roster or its owner may change."""
MOVED_S: Final = 2.0
"""Seconds of silence after which a session is given up whose node is said to be elsewhere; it speaks every second."""
END_S: Final = 2.0
"""How long the last report may take, in seconds."""
_SUFFIX: Final = 5

_log = logging.getLogger(__name__)


class PoolWatch:
    """The pool of one batch while it runs.

    Attributes:
        explained: every node of the pool as it was last seen, and whether it is used.
    """

    def __init__(
        self,
        pool: NodePool,
        dispatcher: Dispatcher,
        need: Need,
        *,
        batch: str,
        swarm: str,
        weights: Weights,
        random: Random | None = None,
    ) -> None:
        """Watch a pool.

        Args:
            pool: the nodes.
            dispatcher: of the batch; its nodes are added here and nowhere else.
            need: what the batch needs of a node, bound to its numerics class.
            batch: its id, under which refusals are kept.
            swarm: the block network of the run worker; empty for none.
            weights: of the ranking.
            random: breaks ties.
        """
        self._pool, self._dispatcher, self._need = pool, dispatcher, need
        self._batch, self._swarm, self._weights = batch, swarm, weights
        self._random = random or Random()
        self._names: dict[str, str] = {}
        self._places: dict[str, object] = {}
        self._moved: dict[str, float] = {}
        self._asked: dict[str, float] = {}
        self._classes: dict[str, str] = {}
        self._reputations: dict[str, Reputation] = {}
        self._refused: dict[str, tuple[tuple[str, ...], bool]] = {}
        self._untold: dict[str, tuple[tuple[str, ...], bool]] = {}
        self._lost: list[tuple[str, str]] = []
        self._news = asyncio.Event()
        self.explained: tuple[Explained, ...] = ()
        dispatcher.on_lost = self._note_lost

    async def begin(self, looked: Sequence[PoolNode]) -> None:
        """Open sessions with the best of the nodes that were looked at."""
        await self._apply(looked)

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        reported = looked = time.monotonic()
        while True:
            pause = self._pool.interval_s - (time.monotonic() - looked)
            try:
                async with asyncio.timeout(max(0.0, pause)):
                    await self._news.wait()
            except TimeoutError:
                looked = time.monotonic()
                try:
                    await self._apply(await self._pool.look())
                except DimError as error:
                    _log.warning("the pool cannot be looked at, its nodes stay as they are: %s", error)
            self._news.clear()
            await self._tell()
            if time.monotonic() - reported >= REPORT_S:
                reported = time.monotonic()
                await self._report()

    async def end(self, within_s: float = END_S) -> None:
        """Pass on what was seen since the last report; a pool that does not take it delays nobody for long."""
        self.explained = tuple(self._with_own_word(each) for each in self.explained)
        self._untold.update(self._news_of(self.explained))
        try:
            async with asyncio.timeout(within_s):
                await self._tell()
                await self._report()
        except (TimeoutError, DimError) as error:
            _log.warning("what the batch saw of its nodes was not kept: %s", error or "the table does not answer")

    async def _apply(self, looked: Sequence[PoolNode]) -> None:
        now = time.monotonic()
        links = {self._names[id]: id for id in self._names}
        by_id = {links[name]: link for name, link in self._dispatcher.links.items()}
        await self._learn_reputations(looked)
        explained = explain_nodes(
            looked,
            self._need,
            swarm=self._swarm,
            weights=self._weights,
            reputations=self._reputations,
            now_ms=time.time_ns() // 1_000_000,
            random=self._random,
        )
        standings = {each.id: self._standing(each, by_id.get(each.id)) for each in looked}
        for id in by_id:
            if self._has_refused(id):
                self._asked.setdefault(id, now)  # it is asked again after a while
        resting = {id for id, since in self._asked.items() if now - since < ASK_AGAIN_S}
        order = [each.node for each in explained if each.feasible and each.node not in resting]
        states = {id: _state_of(link) for id, link in by_id.items()}
        down = sum(each.down_since is not None and not each.is_open and not each.ended for each in by_id.values())
        changes = attend(standings, states, order, room(self._dispatcher.assignment.remaining) + down)
        pool = {each.id: each for each in looked}
        for id, why in changes.cut.items():
            _log.info("node %s is out: %s", self._names[id], why)
            by_id[id].cut(why)
        for id, why in changes.drain.items():
            _log.info("node %s gets no new tasks: %s", self._names[id], why)
            by_id[id].drain(why)
        for id in changes.resume:
            by_id[id].resume()
        for id in changes.join:
            self._join(pool[id])
        for each in looked:
            self._follow(each, by_id.get(each.id))
        self._note(explained, looked, set(changes.join) | {id for id, link in by_id.items() if not link.ended})

    def _join(self, node: PoolNode) -> None:
        assert node.node is not None
        name = self._name(node)
        _log.info("node %s joins", name)
        self._places[node.id] = node.place
        self._moved.pop(node.id, None)
        self._asked.pop(node.id, None)
        self._dispatcher.add_node(
            Recruit(
                node.id,
                name,
                bool(self._swarm) and node.node.swarm == self._swarm,
                partial(self._pool.connect, node.id),
            )
        )

    def _name(self, node: PoolNode) -> str:
        """Name a node in this batch: it keeps the name it had first, and no two have the same."""
        if node.id not in self._names:
            taken = set(self._names.values())
            longer = f"{node.name}-{node.id[-_SUFFIX:]}"
            self._names[node.id] = next((name for name in (node.name, longer) if name not in taken), node.id)
        return self._names[node.id]

    def _standing(self, node: PoolNode, link: NodeLink | None) -> Standing:
        standing = standing_of(node, self._need)
        if standing.presence is Presence.LEAVING and link is not None and link.opened and node.node is None:
            return Standing(Presence.DOUBTFUL, standing.reason)  # what it says of itself is not known: keep to what is
        return standing

    def _follow(self, node: PoolNode, link: NodeLink | None) -> None:
        """Tell a link that its node has moved, or is there again."""
        if link is None or link.ended or node.presence is not Presence.READY:
            return
        now = time.monotonic()
        if node.place != self._places.get(node.id):
            self._places[node.id], self._moved[node.id] = node.place, now
        noticed = self._moved.get(node.id)
        if noticed is not None and link.silent_for(now) < now - noticed:
            del self._moved[node.id]  # it was heard since: the session is with where it is now
        elif noticed is not None and link.silent_for(now) >= MOVED_S:
            del self._moved[node.id]
            link.lose("it was started again, or has moved")
            link.hurry()
        elif link.down_since is not None and not link.is_open:
            link.hurry()

    async def _learn_reputations(self, looked: Sequence[PoolNode]) -> None:
        """Ask for the reputations of nodes that were not seen before; they hardly change while a batch runs."""
        new = {id: found for id, found in classes_of(looked, self._need).items() if self._classes.get(id) != found}
        if new:
            self._classes.update(new)
            self._reputations.update(await self._pool.reputations(new))

    def _note(self, explained: Sequence[Explained], looked: Sequence[PoolNode], used: set[str]) -> None:
        """Keep why each node is, or is not, used, and tell the dispatcher who is missing."""
        self.explained = tuple(self._with_own_word(replace(each, chosen=each.node in used)) for each in explained)
        absent = {
            each.name: ", ".join(each.reasons) for each in self.explained if not each.feasible and not each.chosen
        }
        may_come = self._pool.grows or any(
            each.presence is Presence.DOUBTFUL or (each.node is not None and (each.node.paused or each.node.draining))
            for each in looked
            if each.id not in used and not self._has_refused(each.id)
        )
        self._dispatcher.others(absent, may_come)
        self._untold.update(self._news_of(self.explained))
        self._news.set()

    def _news_of(self, explained: Sequence[Explained]) -> dict[str, tuple[tuple[str, ...], bool]]:
        """Give what the pool was not told yet, by id: the reasons, and whether a node is used."""
        fresh = {
            each.node: (each.reasons, each.chosen)
            for each in explained
            if self._refused.get(each.node) != (each.reasons, each.chosen)
        }
        self._refused.update(fresh)
        return fresh

    def _with_own_word(self, explained: Explained) -> Explained:
        """Add what the node itself said when it was asked."""
        link = self._dispatcher.links.get(self._names.get(explained.node, ""))
        if link is None or not self._has_refused(explained.node) or link.error is None:
            return explained
        if link.error.message in explained.reasons:
            return explained
        return replace(explained, feasible=False, chosen=False, reasons=(*explained.reasons, link.error.message))

    def _has_refused(self, id: str) -> bool:
        name = self._names.get(id)
        link = None if name is None else self._dispatcher.links.get(name)
        return link is not None and link.ended and not link.wanted

    def _note_lost(self, name: str, why: str) -> None:
        self._lost.append((name, why))
        self._news.set()

    async def _tell(self) -> None:
        """Tell the pool what is new; the batch never waits for this."""
        if self._untold:
            untold, self._untold = self._untold, {}
            reasons = {id: why for id, (why, _) in untold.items()}
            await self._pool.keep_refusals(self._batch, reasons, {id for id, (_, chosen) in untold.items() if chosen})
        while self._lost:
            name, why = self._lost.pop(0)
            await self._pool.lost(self._dispatcher.links[name].id, f"a run worker lost it: {why}")

    async def _report(self) -> None:
        classes: dict[str, str] = {}
        seen: dict[str, Seen] = {}
        for name, counts in self._dispatcher.tallies.take().items():
            link = self._dispatcher.links.get(name)
            if link is not None and link.numerics:
                classes[link.id], seen[link.id] = link.numerics, counts
        if seen:
            await self._pool.keep_work(classes, seen)


def _state_of(link: NodeLink) -> Link:
    if link.is_struck_out:
        return Link.BARRED
    if link.ended:
        return Link.ENDED
    return Link.DRAINING if link.is_draining else Link.OPEN
