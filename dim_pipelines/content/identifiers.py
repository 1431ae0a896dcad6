"""Row ids over a whole input: each must stand once, found out in bounded memory."""

from __future__ import annotations

import hashlib
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

_DIGEST_BYTES: Final = 16


class SeenIds:
    """Remembers ids; says at once when one comes again.

    Memory: 8 bytes per integer id and 16 per text id (BLAKE2b; two texts share a digest with a chance of 2^-64
    among four thousand million), twice that for a moment while sorted runs are merged.
    """

    def __init__(self) -> None:
        """Remember nothing yet."""
        self._runs: list[npt.NDArray[Any]] = []

    def add(self, ids: pa.Array) -> int | None:
        """Remember a column of int64 or text ids without nulls.

        Returns:
            the position of the first id that was there before, in this column or an earlier one; None when all are new.
        """
        keys = _keys(ids)
        order = np.argsort(keys, kind="stable")
        run = keys[order]
        again = np.zeros(len(run), dtype=bool)
        again[1:] = run[1:] == run[:-1]
        for known in self._runs:
            places = np.searchsorted(known, run)
            inside = places < len(known)
            again[inside] |= known[places[inside]] == run[inside]
        if again.any():
            return int(order[again].min())
        self._runs.append(run)
        # runs double in length, so that an id is sorted again only a logarithmic number of times
        while len(self._runs) > 1 and len(self._runs[-2]) <= 2 * len(self._runs[-1]):
            merged = np.concatenate((self._runs.pop(), self._runs.pop()))
            merged.sort()
            self._runs.append(merged)
        return None


def _keys(ids: pa.Array) -> npt.NDArray[Any]:
    if pa.types.is_integer(ids.type):
        return np.asarray(ids.to_numpy(zero_copy_only=False))
    digests = b"".join(hashlib.blake2b(text.encode(), digest_size=_DIGEST_BYTES).digest() for text in ids.to_pylist())
    # all are 16 bytes long, so that NumPy, which pads with zeros, cannot take two for one
    return np.frombuffer(digests, dtype=f"S{_DIGEST_BYTES}")
