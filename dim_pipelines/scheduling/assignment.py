"""Which node gets which shard: pull by credit, local data first, a second copy for stragglers at the end.

A shard goes WAITING → CLAIMED (its input is being brought to a node) → RUNNING (one copy, or two) → DONE, and back
to WAITING when a copy fails and no other is left. Claiming moves data, never work: what a node was not sent yet can be
taken from it. Every choice is O(1) in the number of shards; the state is one byte a shard plus what is in flight.
`now` is given in, in seconds of any monotonic clock. Measured against static splitting, see `docs/`: pulling wins
by five times under faults, the second copies matter for the last few hundred shards and cost under 1 % more work.
"""

from __future__ import annotations

import heapq
from array import array
from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from statistics import median
from typing import Final

from dim_pipelines.scheduling.retry import Action, Failure, RetryStrategy

HEDGE_FACTOR: Final = 2.0
"""How many medians of a task's time a copy must run before it gets a second one."""
HEDGE_SAMPLES: Final = 3
"""How many finished tasks the median needs."""
MAX_COPIES: Final = 2
"""How many copies of a shard run at once, at most."""
AVOID_S: Final = 10.0
"""How many seconds a shard that failed waits for a node that has not failed it."""
_DURATIONS: Final = 255
_AVOID_SCAN: Final = 16


class ShardState(IntEnum):
    """Where a shard stands."""

    WAITING = 0
    CLAIMED = 1
    RUNNING = 2
    DONE = 3


@dataclass(frozen=True, slots=True)
class Assigned:
    """A task to send: the shard and the number of the attempt."""

    shard: int
    attempt: int


@dataclass(frozen=True, slots=True)
class Copy:
    """A running copy of a shard."""

    node: str
    attempt: int
    since: float


@dataclass(frozen=True, slots=True)
class GivenUp:
    """A shard that will not be tried again: where it failed last, and how."""

    shard: int
    node: str
    failure: Failure
    spent: int


@dataclass(slots=True)
class _History:
    attempts: int = 0
    spent: int = 0
    free: int = 0
    failed_at: set[str] = field(default_factory=set)
    avoid_until: float = 0.0
    content_at: set[str] = field(default_factory=set)


@dataclass(slots=True)
class _Node:
    local: deque[int] = field(default_factory=deque)
    staging: set[int] = field(default_factory=set)
    ready: deque[int] = field(default_factory=deque)


class Assignment:
    """The shards of one batch and where they are.

    Attributes:
        remaining: shards that are not done.
        retries: attempts that followed a failure that cost something.
        hedges: second copies sent.
    """

    def __init__(self, shards: int, waiting: Iterable[int], strategy: RetryStrategy | None = None) -> None:
        """Begin.

        Args:
            shards: shards of the batch; a shard is its position.
            waiting: those still to compute, in the order in which they go out.
            strategy: what follows from failures.
        """
        self._state = bytearray([ShardState.DONE]) * shards
        self._queue = array("I", waiting)
        for shard in self._queue:
            self._state[shard] = ShardState.WAITING
        self._next = 0
        self._again: deque[int] = deque()
        self._later: list[tuple[float, int]] = []
        self._nodes: dict[str, _Node] = {}
        self._expected: frozenset[str] = frozenset()
        self._copies: dict[int, list[Copy]] = {}
        self._histories: dict[int, _History] = {}
        self._durations: deque[float] = deque(maxlen=_DURATIONS)
        self._median: float | None = None
        self._strategy = strategy or RetryStrategy()
        self._waiting = self.remaining = len(self._queue)
        self.retries = 0
        self.hedges = 0

    @property
    def waiting(self) -> int:
        """How many shards no node has claimed."""
        return self._waiting

    def state(self, shard: int) -> ShardState:
        """Tell where a shard stands."""
        return ShardState(self._state[shard])

    def is_open(self, shard: int) -> bool:
        """Tell whether a shard's output is still wanted."""
        return self._state[shard] != ShardState.DONE

    def copies(self, shard: int) -> tuple[Copy, ...]:
        """Give the running copies of a shard."""
        return tuple(self._copies.get(shard, ()))

    def peek(self, n: int) -> list[int]:
        """Give up to `n` waiting shards that come next, without claiming them."""
        while self._next < len(self._queue) and self._state[self._queue[self._next]] != ShardState.WAITING:
            self._next += 1  # what comes back from where it is goes to the front, not here
        found: list[int] = []
        for position in range(self._next, len(self._queue)):
            if len(found) >= n:
                break
            if self._state[self._queue[position]] == ShardState.WAITING:
                found.append(self._queue[position])
        return found

    def expect(self, nodes: Iterable[str]) -> None:
        """Name the nodes that may still join: bad rows are not believed before one of them has seen them too."""
        self._expected = frozenset(nodes)

    def join(self, node: str) -> None:
        """Count a node among those that may compute."""
        self._nodes.setdefault(node, _Node())

    def leave(self, node: str, now: float, failure: Failure) -> list[GivenUp]:
        """Take a node out: what it had goes back at once, what it was computing has failed.

        Returns:
            Shards that have failed too often now.
        """
        gone = self._nodes.pop(node, None)
        if gone is None:
            return []
        for shard in (*gone.staging, *gone.ready):
            self._unclaim(shard)
        running = [
            (shard, copy.attempt) for shard, copies in self._copies.items() for copy in copies if copy.node == node
        ]
        given_up = [self.failed(node, shard, attempt, failure, now) for shard, attempt in running]
        return [item for item in given_up if item is not None]

    def drain(self, node: str) -> None:
        """Give back what a node has claimed and was not sent; what it computes it may finish."""
        me = self._nodes.get(node)
        if me is None:
            return
        for shard in (*me.staging, *me.ready):
            self._unclaim(shard)
        me.staging.clear()
        me.ready.clear()

    def hold(self, node: str, shards: Iterable[int]) -> None:
        """Note that a node has the input of these shards already: they go to it first."""
        self._nodes[node].local.extend(shards)

    def claim(self, node: str, n: int, now: float, silent: Collection[str] = ()) -> list[int]:
        """Choose up to `n` shards whose input should be at the node next.

        In this order: second copies of what silent nodes compute, shards whose data is there, shards that came back,
        the queue, what other nodes have claimed and cannot start yet, second copies of stragglers.

        Args:
            node: a node that has joined.
            n: how many.
            now: the time.
            silent: nodes that have said nothing for a while.
        """
        me = self._nodes[node]
        while self._later and self._later[0][0] <= now:
            self._again.append(heapq.heappop(self._later)[1])
        claimed: list[int] = []
        if silent and node not in silent:
            self._claim_copies(node, n, now, claimed, silent)
        while len(claimed) < n and self._waiting:
            shard = self._next_waiting(node, me, now)
            if shard is None:
                break
            self._state[shard] = ShardState.CLAIMED
            self._waiting -= 1
            claimed.append(shard)
        while len(claimed) < n and (stolen := self._steal(node, now)) is not None:
            claimed.append(stolen)
        if len(claimed) < n and not self._waiting:
            self._claim_copies(node, n, now, claimed, ())
        me.staging.update(claimed)
        return claimed

    def ready(self, node: str, shards: Iterable[int]) -> None:
        """Note that the input of claimed shards is at the node now."""
        me = self._nodes.get(node)
        if me is None:
            return
        for shard in shards:
            if shard in me.staging:
                me.staging.remove(shard)
                me.ready.append(shard)

    def unready(self, node: str, shards: Iterable[int]) -> None:
        """Note that the input of claimed shards could not be brought to the node."""
        me = self._nodes.get(node)
        if me is None:
            return
        for shard in shards:
            if shard in me.staging:
                me.staging.remove(shard)
                self._unclaim(shard)

    def in_hand(self, node: str) -> int:
        """How many shards the node has claimed and was not sent."""
        me = self._nodes.get(node)
        return 0 if me is None else len(me.staging) + len(me.ready)

    def take(self, node: str, n: int, now: float) -> list[Assigned]:
        """Give up to `n` tasks to send to the node now; their shards are RUNNING from here on."""
        me = self._nodes[node]
        tasks: list[Assigned] = []
        while me.ready and len(tasks) < n:
            shard = me.ready.popleft()
            copies = self._copies.setdefault(shard, [])
            if self._state[shard] == ShardState.DONE or len(copies) >= MAX_COPIES:
                if not copies:
                    del self._copies[shard]
                continue
            if copies:
                self.hedges += 1
            history = self._histories.setdefault(shard, _History())
            history.attempts += 1
            copies.append(Copy(node, history.attempts, now))
            if self._state[shard] == ShardState.WAITING:
                self._waiting -= 1  # a second copy was brought here, and meanwhile the first one failed
            self._state[shard] = ShardState.RUNNING
            tasks.append(Assigned(shard, history.attempts))
        return tasks

    def computed(self, node: str, shard: int, attempt: int, now: float) -> bool:
        """Note that a node says it has computed a task, and learn how long it took.

        Returns:
            Whether its output is still wanted.
        """
        for copy in self._copies.get(shard, ()):
            if copy.node == node and copy.attempt == attempt:
                self._durations.append(now - copy.since)
                self._median = None
                return True
        return False

    def done(self, shard: int) -> list[Copy]:
        """Note that an output was accepted.

        Returns:
            The copies that were running, the winner's included; the others are to be cancelled.
            Empty where the shard was done before.
        """
        if self._state[shard] == ShardState.DONE:
            return []
        if self._state[shard] == ShardState.WAITING:
            self._waiting -= 1
        self._state[shard] = ShardState.DONE
        self._histories.pop(shard, None)
        self.remaining -= 1
        return self._copies.pop(shard, [])

    def failed(self, node: str, shard: int, attempt: int, failure: Failure, now: float) -> GivenUp | None:
        """Note that a copy has failed, and put the shard back unless another copy runs.

        Returns:
            The shard when it is not to be tried again; None otherwise, and where nobody waits for this copy.
        """
        copies = self._copies.get(shard, [])
        left = [copy for copy in copies if (copy.node, copy.attempt) != (node, attempt)]
        if len(left) == len(copies):
            return None
        history = self._histories[shard]
        decision = self._strategy.decide(
            failure,
            spent=history.spent,
            free=history.free,
            content_failures=len(history.content_at - {node}),
            other_nodes=bool((self._nodes.keys() | self._expected) - history.content_at - {node}),
        )
        history.spent += decision.cost
        history.free += not decision.cost
        if decision.elsewhere:
            history.failed_at.add(node)
            history.avoid_until = now + AVOID_S
        if failure.code == "input":
            history.content_at.add(node)
        if decision.action is Action.STOP:
            return GivenUp(shard, node, failure, history.spent)
        self.retries += decision.cost
        if left:
            self._copies[shard] = left
            return None
        del self._copies[shard]
        self._state[shard] = ShardState.WAITING
        self._waiting += 1
        if decision.delay_s:
            heapq.heappush(self._later, (now + decision.delay_s, shard))
        else:
            self._again.append(shard)
        return None

    def _unclaim(self, shard: int) -> None:
        if self._state[shard] == ShardState.CLAIMED:
            self._state[shard] = ShardState.WAITING
            self._waiting += 1
            self._again.append(shard)

    def _next_waiting(self, node: str, me: _Node, now: float) -> int | None:
        while me.local:
            shard = me.local.popleft()
            if self._state[shard] == ShardState.WAITING and not self._avoided(node, shard, now):
                return shard
        for _ in range(min(len(self._again), _AVOID_SCAN)):
            shard = self._again.popleft()
            if self._state[shard] != ShardState.WAITING:
                continue  # it was local to another node, which took it
            if self._avoided(node, shard, now):
                self._again.append(shard)
                continue
            return shard
        while self._next < len(self._queue):
            shard = self._queue[self._next]
            self._next += 1
            if self._state[shard] == ShardState.WAITING and shard not in self._histories:
                return shard
        return None

    def _avoided(self, node: str, shard: int, now: float) -> bool:
        """Whether another node should try the shard first."""
        history = self._histories.get(shard)
        if history is None or node not in history.failed_at or now >= history.avoid_until:
            return False
        return bool(self._nodes.keys() - history.failed_at)

    def _steal(self, node: str, now: float) -> int | None:
        victim = max(
            (other for name, other in self._nodes.items() if name != node and other.ready),
            key=lambda other: len(other.ready),
            default=None,
        )
        if victim is None:
            return None
        for _ in range(len(victim.ready)):
            shard = victim.ready.pop()
            if self._state[shard] == ShardState.CLAIMED and not self._avoided(node, shard, now):
                return shard
            victim.ready.appendleft(shard)
        return None

    def _claim_copies(self, node: str, n: int, now: float, claimed: list[int], silent: Collection[str]) -> None:
        """Add running shards that deserve a second copy on this node; `silent`: only those of silent nodes."""
        limit = self._hedge_after()
        for shard, copies in self._copies.items():
            if len(claimed) >= n:
                return
            copy = copies[0]
            if len(copies) >= MAX_COPIES or copy.node == node or self._is_claimed(shard):
                continue
            if self._avoided(node, shard, now):
                continue  # it failed here a moment ago: another go only spends the shard's attempts
            if copy.node in silent or (not silent and limit is not None and now - copy.since > limit):
                claimed.append(shard)

    def _is_claimed(self, shard: int) -> bool:
        return any(shard in each.staging or shard in each.ready for each in self._nodes.values())

    def _hedge_after(self) -> float | None:
        if len(self._durations) < HEDGE_SAMPLES:
            return None
        if self._median is None:
            self._median = median(self._durations)
        return HEDGE_FACTOR * self._median
