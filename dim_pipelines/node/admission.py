"""What fits on a device, and how much work it asks for: pure rules with small tables.

Sizes are measured: a model's resident bytes when it is first loaded, its peak at a micro-batch size when
that is first run. Before that, the size of its files stands in for both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final

from dim_pipelines.errors import NodeRefused

ESTIMATE_FACTOR: Final = 1.5
"""Device bytes per byte of a model's files, before it was measured."""
CREDIT_PER_DEVICE: Final = 2
"""Tasks asked for per device: one computes while the next one's bytes are fetched."""
MAX_CREDIT: Final = 64
"""The most tasks asked for, however short they are."""
CREDIT_HORIZON_MS: Final = 60.0
"""Short tasks are asked for this far ahead, so that a round trip to the dispatcher is never waited for."""


def credit_window(mean_task_ms: float | None, devices: int = 1) -> int:
    """Say how many tasks a session may have here at a time.

    Args:
        mean_task_ms: recent mean of a task's time in the engine; None before the first.
        devices: how many devices serve the session.
    """
    least = CREDIT_PER_DEVICE * devices
    if mean_task_ms is None:
        return least
    wanted = CREDIT_HORIZON_MS * devices / max(mean_task_ms, 0.001)
    return max(least, min(MAX_CREDIT, math.ceil(wanted)))


class DoesNotFit(NodeRefused):
    """The model does not fit on the device."""

    def __init__(self, need: int, free: int) -> None:
        """Say what was needed and what is free, in bytes of device memory."""
        super().__init__(f"the model needs {need} bytes of device memory, {free} are free")
        self.need = need
        self.free = free


@dataclass(slots=True)
class _Resident:
    reserved: int
    users: int = 0


@dataclass(slots=True)
class DeviceMemory:
    """Reservations on one device; the order of `loaded` is from least to most recently used.

    Attributes:
        budget: bytes that models may use together.
        loaded: model → its reservation.
        resident: model → measured bytes once loaded.
        peak: (model, batch_rows) → measured peak bytes above what was resident before the run.
    """

    budget: int
    loaded: dict[str, _Resident] = field(default_factory=dict)
    resident: dict[str, int] = field(default_factory=dict)
    peak: dict[tuple[str, int], int] = field(default_factory=dict)

    def need(self, model: str, batch_rows: int, file_bytes: int) -> int:
        """Give the bytes to reserve for a model at a micro-batch size."""
        estimate = int(file_bytes * ESTIMATE_FACTOR)
        resident = self.resident.get(model, estimate)
        return resident + self.peak.get((model, batch_rows), estimate - min(estimate, file_bytes))

    def admit(self, model: str, batch_rows: int, file_bytes: int) -> list[str]:
        """Reserve room for one more user of a model.

        Returns:
            The models that must be unloaded first, least recently used first; their reservations are gone.

        Raises:
            DoesNotFit: not even without all models that nobody uses.
        """
        need = self.need(model, batch_rows, file_bytes)
        own = self.loaded.get(model)
        wanted = max(need, own.reserved) if own else need
        others = {key: item for key, item in self.loaded.items() if key != model}
        free = self.budget - sum(item.reserved for item in others.values())
        evicted: list[str] = []
        for key, item in others.items():
            if free >= wanted:
                break
            if item.users == 0:
                free += item.reserved
                evicted.append(key)
        if free < wanted:
            raise DoesNotFit(wanted, max(0, free))
        for key in evicted:
            del self.loaded[key]
        self.loaded.pop(model, None)
        self.loaded[model] = _Resident(wanted, (own.users if own else 0) + 1)
        return evicted

    def release(self, model: str) -> None:
        """Give up one use; the model stays loaded until its room is wanted."""
        item = self.loaded.get(model)
        if item:
            item.users = max(0, item.users - 1)

    def drop(self, model: str) -> None:
        """Forget a model's reservation: it could not be loaded."""
        self.loaded.pop(model, None)

    def measured(self, model: str, *, resident: int | None = None, batch_rows: int = 0, peak: int = 0) -> None:
        """Keep what was measured; the reservation follows it."""
        if resident is not None:
            self.resident[model] = resident
        if batch_rows:
            self.peak[model, batch_rows] = max(peak, self.peak.get((model, batch_rows), 0))
        item = self.loaded.get(model)
        if item and model in self.resident:
            peaks = [value for (key, _), value in self.peak.items() if key == model]
            item.reserved = self.resident[model] + max(peaks, default=0)
