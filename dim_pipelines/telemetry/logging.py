"""How DIM's processes log: one line per record, with the request it belongs to, to stderr or a file.

Library code only makes loggers (`logging.getLogger(__name__)`); a process calls `set_up` once.
"""

from __future__ import annotations

import json
import logging
import time
from contextvars import ContextVar
from pathlib import Path
from typing import Final

REQUEST_ID: ContextVar[str] = ContextVar("dim_request_id", default="")
"""The id of the RPC that the current task serves; empty outside of one."""

_STANDARD: Final = frozenset(logging.LogRecord("", 0, "", 0, "", None, None).__dict__) | {
    "message",
    "asctime",
    "request",
}


class RequestFilter(logging.Filter):
    """Marks each record with the request it belongs to."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Add `request`; let every record pass."""
        record.request = REQUEST_ID.get()
        return True


class JsonFormatter(logging.Formatter):
    """One JSON object per record: time, level, logger, message, request, and what was passed as `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        """Give the line."""
        value = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request := getattr(record, "request", ""):
            value["request"] = request
        value |= {key: item for key, item in record.__dict__.items() if key not in _STANDARD}
        if record.exc_info:
            value["traceback"] = self.formatException(record.exc_info)
        return json.dumps(value, default=str)


def set_up(level: str = "info", *, as_json: bool = False, file: Path | None = None) -> None:
    """Send the process's log to stderr, or to a file; a second call replaces the first.

    Args:
        level: debug, info, warning or error.
        as_json: one JSON object per line instead of plain text.
        file: appended to; its folder is made.
    """
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(file, encoding="utf-8") if file else logging.StreamHandler()
    handler.addFilter(RequestFilter())
    plain = logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    handler.setFormatter(JsonFormatter() if as_json else plain)
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
        old.close()
    root.addHandler(handler)
    root.setLevel(level.upper())
