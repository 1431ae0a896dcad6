"""Whom a batch would rather use: a chain of rankers that ask one question each, weighed, and explained per node.

Ranking runs once per (batch, set of nodes) and only decides whose sessions are opened; which node gets which shard is
the assignment's, by credit. A result never depends on it.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from operator import mul
from random import Random
from typing import Final

from dim_pipelines.domain.node import NodeDescription, numerics_class
from dim_pipelines.errors import ConfigurationError
from dim_pipelines.scheduling.feasibility import Need

UNKNOWN: Final = 0.5
"""What a question gives whose answer nobody knows."""
FEWEST_NODES: Final = 4
"""A batch opens this many nodes, however small it is: a straggler's shard needs another node."""
MOST_NODES: Final = 256
"""Sessions of one batch at a time, at most."""


@dataclass(frozen=True, slots=True)
class Weights:
    """How much each question counts; 0 leaves it out.

    Attributes:
        model: it holds the models.
        data: it reads and writes the same block network.
        speed: it was measured to be fast with these models.
        load: it has free sessions.
        reputation: it was good in this numerics class.
        price: it is cheap.
        jitter: the largest random addition to a score, so that many batches do not all choose the same node.
    """

    model: float = 2.0
    data: float = 1.0
    speed: float = 3.0
    load: float = 1.0
    reputation: float = 3.0
    price: float = 1.0
    jitter: float = 0.02

    @classmethod
    def read(cls, values: Mapping[str, object]) -> Weights:
        """Read weights by name; what is left out stays as it is.

        Raises:
            ConfigurationError: a name is unknown (the nearest one is named), or a weight is no number of 0 or more.
        """
        known = [each.name for each in fields(cls)]
        found: dict[str, float] = {}
        for name, value in values.items():
            if name not in known:
                nearest = difflib.get_close_matches(name, known, 1)
                meant = f"; did you mean {nearest[0]}?" if nearest else ""
                raise ConfigurationError(f"there is no ranking weight {name!r}{meant}", hint=f"{', '.join(known)}")
            try:
                number = float(str(value))
            except ValueError:
                number = math.nan
            if not 0.0 <= number < math.inf:
                raise ConfigurationError(f"the ranking weight {name} is {value!r}, not a number of 0 or more")
            found[name] = number
        return cls(**found)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A node that could take the work.

    Attributes:
        id: what the node is known by.
        node: what it says of itself.
        shared: it reads and writes the run worker's block network.
        reputation: 0 to 1, `UNKNOWN` for a stranger.
        sessions: sessions that it holds; None when unknown.
    """

    id: str
    node: NodeDescription
    shared: bool = False
    reputation: float = UNKNOWN
    sessions: int | None = None


@dataclass(frozen=True, slots=True)
class Ranked:
    """A node's place: its score, and what each question gave (0 to 1)."""

    id: str
    score: float
    parts: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Explained:
    """A node of the pool as a batch sees it.

    Attributes:
        node: what it is known by: its IPNS name, or the address where it does not answer.
        name: its name for people.
        state: how far it is, such as ELIGIBLE or SUSPECT.
        feasible: it could take the batch now.
        reasons: every reason why not; empty where it could.
        score: its score, higher is better; None where it is not feasible.
        parts: what each question of the ranking gave, 0 to 1.
        chosen: a session is opened with it.
    """

    node: str
    name: str
    state: str
    feasible: bool
    reasons: tuple[str, ...] = ()
    score: float | None = None
    parts: Mapping[str, float] = field(default_factory=dict)
    chosen: bool = False


@dataclass(frozen=True, slots=True)
class _Field:
    """What a node is measured against: all candidates together."""

    speeds: Mapping[str, float]
    fastest: float
    dearest: int


def speed_on(node: NodeDescription, need: Need) -> float | None:
    """Give the rows a second at which the node computes all models, one after the other; None when one is unknown.

    It is the low end of the 95 % confidence interval: a speed that was hardly measured counts for less.
    """
    if not need.packages:
        return None
    if not node.speeds:
        return None
    seconds = 0.0
    for cid, (engine, dtype) in zip(need.packages, need.models, strict=True):
        numerics = numerics_class(node.numerics.get(engine, ""), dtype)
        for speed in node.speeds:
            if speed.numerics == numerics and speed.model == cid and speed.rows_per_1000_s > 0:
                break
        else:
            return None
        low = speed.rows_per_1000_s / 1000 * max(0.0, 1.0 - speed.spread_per_mille / 1000)
        if low <= 0.0:
            return None
        seconds += 1.0 / low
    return 1.0 / seconds


def _model(candidate: Candidate, need: Need, _field: _Field) -> float:
    packages = need.packages
    return sum(map(candidate.node.models.__contains__, packages)) / len(packages) if packages else UNKNOWN


def _data(candidate: Candidate, _need: Need, _field: _Field) -> float:
    return 1.0 if candidate.shared else 0.0


def _speed(candidate: Candidate, _need: Need, field: _Field) -> float:
    speed = field.speeds.get(candidate.id)
    return UNKNOWN if speed is None else speed / field.fastest


def _load(candidate: Candidate, _need: Need, _field: _Field) -> float:
    if candidate.sessions is None or candidate.node.max_sessions <= 0:
        return UNKNOWN
    return max(0.0, 1.0 - candidate.sessions / candidate.node.max_sessions)


def _reputation(candidate: Candidate, _need: Need, _field: _Field) -> float:
    return min(1.0, max(0.0, candidate.reputation))


def _price(candidate: Candidate, _need: Need, field: _Field) -> float:
    return 1.0 - candidate.node.price / field.dearest if field.dearest else 1.0


RANKERS: Final[Mapping[str, Callable[[Candidate, Need, _Field], float]]] = {
    "model": _model,
    "data": _data,
    "speed": _speed,
    "load": _load,
    "reputation": _reputation,
    "price": _price,
}
"""Each question by the name of its weight; each answer is 0 to 1, higher is better."""


def rank(candidates: Sequence[Candidate], need: Need, weights: Weights, random: Random) -> list[Ranked]:
    """Order nodes, the best first.

    Args:
        candidates: nodes that could take the work.
        need: the work.
        weights: what counts how much.
        random: breaks ties.
    """
    speeds = {each.id: speed for each in candidates if (speed := speed_on(each.node, need)) is not None}
    against = _Field(
        speeds, max(speeds.values(), default=1.0), max((each.node.price for each in candidates), default=0)
    )
    names = [name for name in RANKERS if getattr(weights, name) > 0]
    chain = [RANKERS[name] for name in names]
    counts = [getattr(weights, name) for name in names]
    total, jitter, chance = sum(counts) or 1.0, weights.jitter, random.random
    ranked = []
    for each in candidates:  # a thousand nodes are ranked in some milliseconds: no generators in here
        answers = [ranker(each, need, against) for ranker in chain]
        score = sum(map(mul, answers, counts)) / total
        ranked.append(Ranked(each.id, score + jitter * chance(), dict(zip(names, answers, strict=True))))
    ranked.sort(key=lambda each: (-each.score, each.id))
    return ranked


def room(shards: int) -> int:
    """Tell how many nodes a batch with so many shards left opens at a time: no more than have something to do."""
    return min(MOST_NODES, max(FEWEST_NODES, math.ceil(shards / 2)))
