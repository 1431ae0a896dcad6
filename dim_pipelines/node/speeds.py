"""How fast this node computes models: the arithmetic of measurements, and the file that keeps their results."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from dim_pipelines.domain.advertisement import Speed
from dim_pipelines.domain.cid import Cid
from dim_pipelines.errors import InputError

MAX_SPEEDS: Final = 32
"""How many speeds are kept and advertised: those measured last."""
_T_975: Final = (
    12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14, 2.13,
    2.12, 2.11, 2.10, 2.09, 2.09, 2.08, 2.07, 2.07, 2.06, 2.06, 2.06, 2.05, 2.05, 2.05, 2.04,
)  # fmt: skip
"""97.5 % quantiles of Student's t for 1 to 30 degrees of freedom (any table of it); beyond: that of the normal."""
_NORMAL_975: Final = 1.96


@dataclass(slots=True)
class Timing:
    """Times of one device's micro-batches, kept as count, mean and sum of squares.

    Source: B. P. Welford, "Note on a method for calculating corrected sums of squares and products", 1962.

    Attributes:
        rows: rows of each micro-batch.
        samples: how many were timed.
        mean: seconds.
    """

    rows: int
    samples: int = 0
    mean: float = 0.0
    squares: float = field(default=0.0)

    def add(self, seconds: float) -> None:
        """Take one time in."""
        self.samples += 1
        before = seconds - self.mean
        self.mean += before / self.samples
        self.squares += before * (seconds - self.mean)

    @property
    def rate(self) -> float:
        """Rows per second; 0 before the first time."""
        return self.rows / self.mean if self.mean > 0 else 0.0

    @property
    def spread(self) -> float:
        """Half of the 95 % confidence interval of the mean time, as a share of it; 1 where it is unknown."""
        if self.samples < 2 or self.mean <= 0:
            return 1.0
        deviation = math.sqrt(max(0.0, self.squares) / (self.samples - 1))
        quantile = _T_975[self.samples - 2] if self.samples - 2 < len(_T_975) else _NORMAL_975
        return min(1.0, quantile * deviation / math.sqrt(self.samples) / self.mean)


def combine(model: Cid, numerics: str, timings: Sequence[Timing]) -> Speed:
    """Give the speed of all devices together: rates add up, and so do the squares of their intervals.

    Args:
        model: the model's CID.
        numerics: the numerics class that it was measured in.
        timings: one of each device.
    """
    rate = sum(each.rate for each in timings)
    half = math.sqrt(sum((each.rate * each.spread) ** 2 for each in timings))
    return Speed(
        model=model,
        numerics=numerics,
        rows_per_1000_s=round(rate * 1000),
        spread_per_mille=round(1000 * half / rate) if rate else 1000,
        samples=sum(each.samples for each in timings),
    )


class SpeedBook:
    """The speeds of this node, newest last, in a file that is written whole.

    Attributes:
        speeds: those in force.
    """

    def __init__(self, path: Path) -> None:
        """Read the file; what cannot be read is measured again."""
        self._path = path
        self.speeds: tuple[Speed, ...] = ()
        try:
            listed = json.loads(path.read_bytes())
            self.speeds = tuple(_speed(each) for each in listed)[-MAX_SPEEDS:]
        except (OSError, ValueError, TypeError, KeyError, AttributeError, ValidationError, InputError):
            self.speeds = ()

    def keep(self, speed: Speed) -> None:
        """Keep a measurement in place of the one before of that model and class."""
        others = [each for each in self.speeds if (each.model, each.numerics) != (speed.model, speed.numerics)]
        self.speeds = tuple([*others, speed][-MAX_SPEEDS:])
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        plain = [each.model_dump() | {"model": str(each.model)} for each in self.speeds]
        fresh.write_text(json.dumps(plain, indent=1) + "\n", encoding="utf-8")
        fresh.replace(self._path)


def _speed(value: dict[str, object]) -> Speed:
    return Speed.model_validate(value | {"model": Cid.parse(str(value["model"]))})
