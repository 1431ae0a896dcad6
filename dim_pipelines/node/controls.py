"""An owner's controls of a node, as pure rules: paused, hours, whose batches, which licences, how many sessions.

They are kept in `controls.yaml` of the node's home (`controls_file` reads it again when it changes), enforced when a
session opens, and advertised so that nobody asks in vain.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import datetime
from typing import Any, Final, Self

from dim_pipelines.domain.licences import permits
from dim_pipelines.errors import ConfigurationError, Forbidden, NodeBusy, NodeRefused

MAX_SESSIONS: Final = 64
"""The most sessions at a time, whatever the owner wishes."""
MAX_LISTED: Final = 32
"""The most owners, licences or labels; all of them travel in a record of 10 KiB."""
MAX_TEXT: Final = 120
"""The longest owner, licence, or key or value of a label, in characters."""
MAX_PRICE: Final = 10**12

_DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_DAY_MINUTES: Final = 24 * 60
_WEEK_MINUTES: Final = 7 * _DAY_MINUTES
_SPAN: Final = re.compile(
    r"(?:(?P<first>[a-z]{3})(?:-(?P<last>[a-z]{3}))?\s+)?(?P<from>\d{1,2}:\d{2})\s*-\s*(?P<to>\d{1,2}:\d{2})"
)
_HOURS_HINT: Final = "it looks like 22:00-07:00, or: mon-fri 18:00-08:00, sat-sun 00:00-24:00"


@dataclass(frozen=True, slots=True)
class Hours:
    """When a node works, in its local time.

    Attributes:
        text: as the owner wrote it: spans with commas between them; empty: always.
        spans: minutes of the week (Monday 0:00 is 0), each from its begin to before its end; an end beyond Sunday's
            midnight goes on on Monday.
    """

    text: str = ""
    spans: tuple[tuple[int, int], ...] = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read hours: `22:00-07:00`, `mon-fri 18:00-08:00, sat-sun 00:00-24:00`; `always` or nothing: always.

        A span that ends before it begins goes over midnight; its days are those on which it begins.

        Raises:
            ConfigurationError: it is something else.
        """
        written = " ".join(text.lower().split())
        if written in ("", "always"):
            return cls()
        spans: list[tuple[int, int]] = []
        for part in written.split(","):
            found = _SPAN.fullmatch(part.strip())
            if not found:
                raise ConfigurationError(f"not hours: {part.strip()!r}", hint=_HOURS_HINT)
            begin, end = _minute(found["from"]), _minute(found["to"])
            if begin == end:
                raise ConfigurationError(f"not hours: {part.strip()!r} is empty", hint="all day is 00:00-24:00")
            end += _DAY_MINUTES if end < begin else 0
            spans += [(day * _DAY_MINUTES + begin, day * _DAY_MINUTES + end) for day in _days(found)]
        return cls(written, tuple(spans))

    def open_at(self, local: datetime) -> bool:
        """Tell whether the node works at this local time."""
        if not self.spans:
            return True
        minute = local.weekday() * _DAY_MINUTES + local.hour * 60 + local.minute
        return any(begin <= at < end for begin, end in self.spans for at in (minute, minute + _WEEK_MINUTES))


@dataclass(frozen=True, slots=True)
class Controls:
    """What the owner of a node allows.

    Attributes:
        paused: it takes no sessions until the owner resumes it.
        hours: when it works.
        max_sessions: the most sessions at a time, 1 to 64.
        owners: whose batches it takes; empty: everybody's who may submit.
        licences: SPDX ids of the models it runs; empty: all.
        price: asked per 1,000 rows, in millionths of a credit.
        labels: for `requirements.labels` of batches.
    """

    paused: bool = False
    hours: Hours = field(default_factory=Hours)
    max_sessions: int = MAX_SESSIONS
    owners: tuple[str, ...] = ()
    licences: tuple[str, ...] = ()
    price: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)

    def closed(self, local: datetime) -> str:
        """Say why the node takes no new sessions at this local time; empty: it takes them."""
        if self.paused:
            return "this node is paused by its owner"
        if not self.hours.open_at(local):
            return f"this node works {self.hours.text} (its local time)"
        return ""

    def admit(self, owner: str, sessions: int, local: datetime) -> None:
        """Let a session in.

        Args:
            owner: the member that the batch belongs to.
            sessions: how many others are open or opening.
            local: the node's local time.

        Raises:
            NodeBusy: paused, outside of its hours, or full.
            Forbidden: another owner than those that the node works for.
        """
        if reason := self.closed(local):
            raise NodeBusy(reason)
        if sessions >= self.max_sessions:
            raise NodeBusy(f"{sessions} sessions are open, and its owner allows {self.max_sessions}")
        if self.owners and owner not in self.owners:
            raise Forbidden(f"this node works for {', '.join(self.owners)}, not for {owner}")

    def admit_licence(self, model: str, licence: str) -> None:
        """Let a model in.

        Raises:
            NodeRefused: its licence is none of those that the owner allows.
        """
        if not permits(licence, self.licences):
            raise NodeRefused(
                f"model {model} has licence {licence}, and this node runs {', '.join(self.licences)} only",
                hint="on the node: dim node set licences ID …",
            )

    def to_plain(self) -> dict[str, Any]:
        """Give what `controls.yaml` holds: only what differs from the default."""
        plain = {
            "paused": self.paused,
            "hours": self.hours.text,
            "max_sessions": self.max_sessions,
            "owners": list(self.owners),
            "licences": list(self.licences),
            "price": self.price,
            "labels": dict(self.labels),
        }
        default = {"paused": False, "hours": "", "max_sessions": MAX_SESSIONS, "price": 0}
        return {key: value for key, value in plain.items() if value != default.get(key) and value not in ([], {})}


def read_controls(value: object) -> Controls:
    """Read what `controls.yaml` holds.

    Raises:
        ConfigurationError: a key is unknown, or a value is none for its key.
    """
    if not isinstance(value, Mapping):
        raise ConfigurationError("controls are a map of settings")
    made: dict[str, Any] = {}
    for key, given in value.items():
        made[_known(str(key))] = _READERS[_known(str(key))](given)
    return Controls(**made)


def change_controls(controls: Controls, key: str, words: Sequence[str]) -> Controls:
    """Give the controls with one setting changed, as words of a command line; no words: its default.

    Raises:
        ConfigurationError: the key is unknown, or the words are no value for it.
    """
    name = _known(key.replace("-", "_"))
    if not words:
        return replace(controls, **{name: getattr(Controls(), name)})
    value: object
    if name == "labels":
        pairs = [word.partition("=") for word in words]
        if not all(equals for _, equals, _ in pairs):
            raise ConfigurationError("labels are KEY=VALUE", hint="dim node set labels gpu=a100 place=lyon")
        value = {before: after for before, _, after in pairs}
    elif name in ("owners", "licences"):
        value = list(words)
    elif name == "hours":
        value = " ".join(words)
    else:
        if len(words) > 1:
            raise ConfigurationError(f"{name} has one value, not {len(words)}")
        value = _word(words[0])
    return replace(controls, **{name: _READERS[name](value)})


def _word(text: str) -> object:
    if text.lower() in ("true", "yes", "on", "false", "no", "off"):
        return text.lower() in ("true", "yes", "on")
    return int(text) if text.isascii() and text.isdigit() else text


def _known(key: str) -> str:
    names = [each.name for each in fields(Controls)]
    if key in names:
        return key
    near = difflib.get_close_matches(key, names, 1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}"
    raise ConfigurationError(f"controls have no setting {key!r}", hint=hint)


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ConfigurationError(f"paused is true or false, not {value!r}")
    return value


def _hours(value: object) -> Hours:
    if not isinstance(value, str):
        raise ConfigurationError(f"not hours: {value!r}", hint=f"put it in quotes; {_HOURS_HINT}")
    return Hours.parse(value)


def _number(name: str, least: int, most: int) -> Callable[[object], int]:
    def read(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise ConfigurationError(f"{name} is a number from {least} to {most}, not {value!r}")
        return value

    return read


def _list(name: str) -> Callable[[object], tuple[str, ...]]:
    def read(value: object) -> tuple[str, ...]:
        if not isinstance(value, list) or len(value) > MAX_LISTED or not all(_text(each) for each in value):
            raise ConfigurationError(f"{name} is a list of at most {MAX_LISTED} names")
        return tuple(dict.fromkeys(value))

    return read


def _labels(value: object) -> dict[str, str]:
    if not isinstance(value, Mapping) or len(value) > MAX_LISTED:
        raise ConfigurationError(f"labels are a map of at most {MAX_LISTED} names and values")
    if not all(_text(key) and isinstance(item, (str, int, float)) for key, item in value.items()):
        raise ConfigurationError("labels are a map of names and values, each a short text")
    made = {key: _plain(item) for key, item in value.items()}
    if not all(len(item) <= MAX_TEXT for item in made.values()):
        raise ConfigurationError(f"a label's value has at most {MAX_TEXT} characters")
    return made


def _plain(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _text(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= MAX_TEXT and value.isprintable()


_READERS: Final[Mapping[str, Callable[[object], Any]]] = {
    "paused": _flag,
    "hours": _hours,
    "max_sessions": _number("max_sessions", 1, MAX_SESSIONS),
    "owners": _list("owners"),
    "licences": _list("licences"),
    "price": _number("price", 0, MAX_PRICE),
    "labels": _labels,
}


def _minute(text: str) -> int:
    hour, _, minute = text.partition(":")
    if int(hour) > 24 or int(minute) > 59 or (int(hour) == 24 and int(minute)):
        raise ConfigurationError(f"not a time of day: {text}", hint=_HOURS_HINT)
    return int(hour) * 60 + int(minute)


def _days(found: re.Match[str]) -> range | list[int]:
    """Give the days on which a span begins; `sat-mon` goes over the week's end."""
    if found["first"] is None:
        return range(7)
    for name in (found["first"], found["last"] or found["first"]):
        if name not in _DAYS:
            raise ConfigurationError(f"not a day: {name!r}", hint=f"the days are {', '.join(_DAYS)}")
    first, last = _DAYS.index(found["first"]), _DAYS.index(found["last"] or found["first"])
    return [day % 7 for day in range(first, last + 1 if last >= first else last + 8)]
