"""Which session a device serves next: deficit round robin, by owner first and by weight within an owner.

Pure functions over a small value. A session's account holds the milliseconds of device time it is owed;
running costs them, a round gives every waiting one its quantum, and the next in the ring with something left
is served. Who has no work waiting keeps debts but no savings, so nobody can hoard a share while idle. The
true cost is known only afterwards, so an account may fall below zero (surplus round robin: Adiseshu, Parulkar
and Varghese, "A reliable and scalable striping protocol", 1996): the debt is paid off before the next turn.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, TypeVar

Key = TypeVar("Key")

QUANTUM_MS: Final = 50.0
"""Device time that an owner, or a session of weight 1, is given per round."""
MINIMUM_SLICE_MS: Final = 2000.0
"""How long a device stays with a model that still has work before it changes to another."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A session with work waiting.

    Attributes:
        session: its key.
        owner: whose batch it is.
        weight: its share among the sessions of that owner, 1 or more.
        model: the model its next task needs.
    """

    session: int
    owner: str
    weight: int
    model: str


@dataclass(frozen=True, slots=True)
class Accounts:
    """What everybody is owed, in milliseconds of device time; those who come first in the rings are served first.

    Attributes:
        owners, sessions: key → balance; the order of the mapping is the ring.
        model: the model served last.
        slice_ms: how long it has been served since the device changed to it.
    """

    owners: Mapping[str, float] = field(default_factory=dict)
    sessions: Mapping[int, float] = field(default_factory=dict)
    model: str = ""
    slice_ms: float = 0.0


def choose(accounts: Accounts, waiting: Sequence[Candidate]) -> tuple[int, Accounts]:
    """Choose the session to serve next; `waiting` is not empty.

    Returns:
        The session's key, and the accounts with the rounds that were needed.
    """
    active = _sticking(accounts, waiting)
    idle_owners = {item.owner for item in waiting}
    idle_sessions = {item.session for item in waiting}
    owners = {key: value if key in idle_owners else min(0.0, value) for key, value in accounts.owners.items()}
    sessions = {key: value if key in idle_sessions else min(0.0, value) for key, value in accounts.sessions.items()}
    owners, owner = _turn(owners, {item.owner: 1 for item in active})
    mine = {item.session: item.weight for item in active if item.owner == owner}
    sessions, session = _turn(sessions, mine)
    return session, replace(accounts, owners=owners, sessions=sessions)


def charge(accounts: Accounts, candidate: Candidate, cost_ms: float) -> Accounts:
    """Take what a run cost from the session and its owner; who has used up its turn goes to the end of its ring."""
    same = accounts.model == candidate.model
    return Accounts(
        _paid(accounts.owners, candidate.owner, cost_ms),
        _paid(accounts.sessions, candidate.session, cost_ms),
        candidate.model,
        accounts.slice_ms + cost_ms if same else cost_ms,
    )


def forget(accounts: Accounts, session: int, owner: str, *, last_of_owner: bool) -> Accounts:
    """Close a session's account, and its owner's when it was the owner's last."""
    sessions = {key: value for key, value in accounts.sessions.items() if key != session}
    owners = {key: value for key, value in accounts.owners.items() if not (last_of_owner and key == owner)}
    return replace(accounts, owners=owners, sessions=sessions)


def _sticking(accounts: Accounts, waiting: Sequence[Candidate]) -> Sequence[Candidate]:
    """Leave only those that need no change of model while the minimum slice lasts."""
    if accounts.slice_ms >= MINIMUM_SLICE_MS:
        return waiting
    return [item for item in waiting if item.model == accounts.model] or waiting


def _turn(balances: dict[Key, float], shares: Mapping[Key, int]) -> tuple[dict[Key, float], Key]:
    """Give rounds of quanta until one of `shares` has something, and name the first such in the ring."""
    for key in shares:
        balances.setdefault(key, 0.0)
    rounds = min(_rounds_needed(balances[key], share) for key, share in shares.items())
    if rounds:
        for key, share in shares.items():
            balances[key] += rounds * QUANTUM_MS * share
    return balances, next(key for key, balance in balances.items() if key in shares and balance > 0)


def _rounds_needed(balance: float, share: int) -> int:
    return 0 if balance > 0 else math.floor(-balance / (QUANTUM_MS * share)) + 1


def _paid(balances: Mapping[Key, float], key: Key, cost_ms: float) -> dict[Key, float]:
    left = balances.get(key, 0.0) - cost_ms
    if left > 0:
        return {**balances, key: left}
    return {**{other: value for other, value in balances.items() if other != key}, key: left}
