"""How much memory this process uses, as the kernel counts it: what `cpu` engines report as device memory."""

from __future__ import annotations

import os
import resource
from pathlib import Path


class ProcessMemory:
    """Resident and peak bytes of this process (proc(5): statm; getrusage(2): maxrss)."""

    def __init__(self) -> None:
        """Start with the peak of now."""
        self._page = os.sysconf("SC_PAGE_SIZE")

    def resident_bytes(self) -> int:
        """Give the resident set in bytes."""
        return int(Path("/proc/self/statm").read_bytes().split()[1]) * self._page

    def peak_bytes(self) -> int:
        """Give the highest resident set of the process's life in bytes."""
        return max(self.resident_bytes(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
