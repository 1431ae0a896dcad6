"""Which names are worth asking a name service for: pure rules of what is known and when it was last asked.

A record that came by bus or Announce is renewed by those roads, so that nobody asks for it. One that was not renewed
in time is asked for, and so is a member of whom nothing is known; a name without a record is asked for ever less often.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

POLL_MS: Final = 20_000
"""How often a name is asked for at most."""
LATE_MS: Final = 100_000
"""A record with less time left than this was not renewed: of its 180 s a publisher uses 60."""
LONGEST_MS: Final = 60_000
"""How long a name without a record waits at most until it is asked for again."""


@dataclass(slots=True)
class _Asked:
    at_ms: int
    misses: int = 0


class PollPlan:
    """What was asked for when; one entry per member."""

    def __init__(self) -> None:
        """Begin without having asked for anything."""
        self._asked: dict[str, _Asked] = {}

    def due(self, expiring: dict[str, int], now_ms: int) -> list[str]:
        """Give the names to ask for now, those that wait longest first, and take them as asked.

        Args:
            expiring: name of each admitted node → when its record ends (Unix milliseconds); 0 where there is none.
            now_ms: Unix time in milliseconds.
        """
        for name in self._asked.keys() - expiring.keys():
            del self._asked[name]
        wanted = [name for name, ends in expiring.items() if ends - now_ms < LATE_MS and self._waited(name, now_ms)]
        wanted.sort(key=lambda name: self._asked[name].at_ms if name in self._asked else 0)
        for name in wanted:
            self._asked.setdefault(name, _Asked(now_ms)).at_ms = now_ms
        return wanted

    def found(self, name: str) -> None:
        """Take in that a name had a record."""
        if name in self._asked:
            self._asked[name].misses = 0

    def missed(self, name: str) -> None:
        """Take in that a name had none."""
        if name in self._asked:
            self._asked[name].misses += 1

    def _waited(self, name: str, now_ms: int) -> bool:
        asked = self._asked.get(name)
        if asked is None or now_ms < asked.at_ms:  # never asked, or the clock went back
            return True
        pause = min(POLL_MS * 2 ** min(asked.misses, 8), LONGEST_MS) if asked.misses > 3 else POLL_MS
        return now_ms - asked.at_ms >= pause
