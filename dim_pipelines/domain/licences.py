"""Which licences an owner's list lets in: SPDX expressions against a list of ids.

Source: SPDX specification 2.3, annex D (licence expressions): `AND` binds before `OR`, `WITH` adds an exception to
one id; ids are compared without regard to case.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import Final

from dim_pipelines.errors import InputError

_TOKEN: Final = re.compile(r"\s*([()]|[A-Za-z0-9.+:-]+)")
_MAX_LENGTH: Final = 1000
_WORDS: Final = frozenset({"AND", "OR", "WITH", "(", ")"})


def permits(expression: str, allowed: Collection[str]) -> bool:
    """Tell whether a licence expression can be met with the allowed ids; an empty list allows everything.

    Args:
        expression: an SPDX expression, as a model's description states it; what is none is one id of its own.
        allowed: SPDX ids. An exception needs no entry of its own: it only adds permissions.
    """
    if not allowed:
        return True
    known = {each.casefold() for each in allowed}
    if expression.strip().casefold() in known:
        return True
    try:
        return _Expression(expression, known).value()
    except InputError:
        return False


class _Expression:
    """A recursive descent over the tokens, which gives at each level whether the allowed ids meet it."""

    def __init__(self, text: str, known: Collection[str]) -> None:
        self._tokens = list(_tokens(text))
        self._known = known
        self._at = 0

    def value(self) -> bool:
        met = self._any()
        if self._at < len(self._tokens):
            raise InputError(f"not a licence expression: {self._tokens[self._at]!r} is left over")
        return met

    def _any(self) -> bool:
        met = self._all()
        while self._taken("OR"):
            met = self._all() or met
        return met

    def _all(self) -> bool:
        met = self._one()
        while self._taken("AND"):
            met = self._one() and met
        return met

    def _one(self) -> bool:
        if self._taken("("):
            met = self._any()
            if not self._taken(")"):
                raise InputError("not a licence expression: a bracket is not closed")
            return met
        met = self._id().casefold() in self._known
        if self._taken("WITH"):
            self._id()
        return met

    def _id(self) -> str:
        if self._at >= len(self._tokens) or self._tokens[self._at].upper() in _WORDS:
            raise InputError("not a licence expression: an id is missing")
        self._at += 1
        return self._tokens[self._at - 1]

    def _taken(self, word: str) -> bool:
        if self._at < len(self._tokens) and self._tokens[self._at].upper() == word:
            self._at += 1
            return True
        return False


def _tokens(text: str) -> Iterator[str]:
    if len(text) > _MAX_LENGTH:
        raise InputError("not a licence expression: it is too long")
    position = 0
    text = text.rstrip()
    while position < len(text):
        found = _TOKEN.match(text, position)
        if not found:
            raise InputError(f"not a licence expression: {text[position : position + 20]!r}")
        yield found[1]
        position = found.end()
