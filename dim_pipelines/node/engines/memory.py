"""How much memory this process uses, as the kernel counts it: what `cpu` engines report as device memory."""

from __future__ import annotations

import ctypes
import os
import resource
from pathlib import Path

_libc = ctypes.CDLL(None)


def give_back() -> None:
    """Give memory that the allocator keeps for reuse back to the kernel, where the C library can (malloc_trim(3)).

    Before a model is loaded and after one was dropped: what is kept would hide the one and outlive the other.
    """
    trim = getattr(_libc, "malloc_trim", None)
    if trim is not None:
        trim(ctypes.c_size_t(0))


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
