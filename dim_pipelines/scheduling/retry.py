"""What follows from a failure: a pure rule from (failure, what the shard went through) to a decision.

Failures fall into four classes, by the code of `dim_pipelines.errors` that the node gave:

========  ====================================================  ==========================================
class     codes                                                 what follows
========  ====================================================  ==========================================
free      handed back, `cancelled`, `node_busy`,                another try that costs nothing; not at once
          `quota_exceeded`                                      on the node that said so
content   `input`                                               the rows are bad: believed when a second node
                                                                says so too, or there is none
fatal     `stale_epoch`                                         the batch stops
node      everything else, unknown codes included               another try, other nodes first; costs one
========  ====================================================  ==========================================

A node's word that a failure is not retryable is not taken: it is the node that may be broken.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

MAX_ATTEMPTS: Final = 4
"""How many failures that cost something a shard may have."""
BUSY_DELAY_S: Final = 0.5
"""Seconds before a task goes out again that a node had no room for; each further time it is that much longer."""
MAX_BUSY_DELAY_S: Final = 5.0
"""The longest such pause, in seconds."""
MAX_FREE: Final = 100
"""How often a shard may come back without cost; after that it costs, so that a batch has an end."""

_FREE: Final = frozenset({"cancelled", "node_busy", "quota_exceeded"})
_CONTENT: Final = frozenset({"input"})
_FATAL: Final = frozenset({"stale_epoch"})


@dataclass(frozen=True, slots=True)
class Failure:
    """Why one attempt failed.

    Attributes:
        code: a code of `dim_pipelines.errors`.
        message: one line for people.
        handed_back: the node never started the task.
    """

    code: str
    message: str
    handed_back: bool = False


def is_own_fault(failure: Failure) -> bool:
    """Tell whether a failure speaks against the node, rather than against the rows, the run or the moment."""
    return not failure.handed_back and failure.code not in _FREE | _CONTENT | _FATAL


class Action(Enum):
    """What to do with the shard."""

    RETRY = "retry"
    STOP = "stop"


@dataclass(frozen=True, slots=True)
class RetryDecision:
    """What follows from a failure.

    Attributes:
        cost: what is added to the shard's spent attempts.
        elsewhere: other nodes come first.
        delay_s: seconds to wait before the shard may go out again.
    """

    action: Action
    cost: int = 0
    elsewhere: bool = True
    delay_s: float = 0.0


@dataclass(frozen=True, slots=True)
class RetryStrategy:
    """The rule, with its cap on attempts per shard."""

    max_attempts: int = MAX_ATTEMPTS

    def decide(
        self, failure: Failure, *, spent: int, content_failures: int, other_nodes: bool, free: int = 0
    ) -> RetryDecision:
        """Decide about a shard that has just failed.

        Args:
            failure: what happened.
            spent: attempts that failed before and cost something.
            content_failures: other nodes that found the same rows bad before.
            other_nodes: whether a node that has not found these rows bad could still try them.
            free: failures before that cost nothing.
        """
        if failure.code in _FATAL:
            return RetryDecision(Action.STOP)
        if (failure.handed_back or failure.code in _FREE) and free < MAX_FREE:
            times = free if failure.handed_back else free + 1  # what was handed back once goes out again at once
            return RetryDecision(Action.RETRY, 0, True, min(BUSY_DELAY_S * times, MAX_BUSY_DELAY_S))
        if failure.code in _CONTENT and (content_failures > 0 or not other_nodes):
            return RetryDecision(Action.STOP, 1)
        if spent + 1 >= self.max_attempts:
            return RetryDecision(Action.STOP, 1)
        return RetryDecision(Action.RETRY, 1, True)
