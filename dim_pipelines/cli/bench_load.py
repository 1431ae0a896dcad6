"""Who used the machine while something was measured: this process with its children, and all others.

Read from /proc (Linux). A figure taken while others were busy is no figure: the benchmarks print their share.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Load:
    """What was used between two looks.

    Attributes:
        seconds: wall time.
        own_cpu_s: processor seconds of this process and all that it started.
        others: share of the whole machine's processor time that others used, 0 to 1.
    """

    seconds: float
    own_cpu_s: float
    others: float


class LoadMeter:
    """Looks at the machine's and the own processor time; a look gives the load since the one before it."""

    def __init__(self) -> None:
        """Take the first look."""
        self._last = self._look()

    def look(self) -> Load:
        """Give the load since the last look."""
        before, now = self._last, self._look()
        self._last = now
        seconds = now[0] - before[0]
        own = now[1] - before[1]
        busy = now[2] - before[2]
        capacity = seconds * (os.cpu_count() or 1)
        return Load(seconds, own, max(0.0, busy - own) / capacity if capacity else 0.0)

    @staticmethod
    def _look() -> tuple[float, float, float]:
        return time.monotonic(), _own_cpu_s(), _machine_cpu_s()


def _machine_cpu_s() -> float:
    fields = [int(word) for word in Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:9]]
    user, nice, system, _idle, _iowait, irq, softirq, steal = fields  # steal: what other guests of the host took
    return (user + nice + system + irq + softirq + steal) / _TICKS_PER_S


def _own_cpu_s() -> float:
    """Processor time of the process tree below this process, those that have ended and were waited for included."""
    children: dict[int, list[int]] = {}
    ticks: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
        except OSError:
            continue  # it has ended meanwhile
        children.setdefault(int(fields[1]), []).append(int(entry.name))
        ticks[int(entry.name)] = sum(int(field) for field in fields[11:15])
    total = 0
    todo = [os.getpid()]
    while todo:
        process = todo.pop()
        total += ticks.get(process, 0)
        todo += children.get(process, [])
    return total / _TICKS_PER_S
