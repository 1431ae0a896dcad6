"""How a pattern is found by its name: DIM's own, and those that other packages offer."""

from __future__ import annotations

import difflib
from importlib.metadata import entry_points
from typing import Final

from dim_pipelines.errors import ConfigurationError
from dim_pipelines.patterns.collaborative import Collaborative
from dim_pipelines.patterns.pattern import Pattern

ENTRY_POINTS: Final = "dim_pipelines.patterns"
"""The entry point group in which other packages offer patterns: name → a class without arguments."""


def find_pattern(name: str) -> Pattern:
    """Find a pattern by its name.

    Raises:
        ConfigurationError: there is none of this name (the nearest is given), or it is no pattern.
    """
    if name == Collaborative.name:
        return Collaborative()
    offered = {entry.name: entry for entry in entry_points(group=ENTRY_POINTS)}
    if name not in offered:
        known = sorted({Collaborative.name, *offered})
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"patterns: {', '.join(known)}"
        raise ConfigurationError(f"there is no pattern {name!r}", hint=hint)
    try:
        pattern = offered[name].load()()
    except Exception as error:  # another package's code
        raise ConfigurationError(f"the pattern {name!r} cannot be loaded: {error}") from error
    if not isinstance(pattern, Pattern):
        raise ConfigurationError(f"{offered[name].value}, offered as the pattern {name!r}, is no pattern")
    return pattern
