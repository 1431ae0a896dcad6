"""Where a home's orchestrator is: what it announces while it runs, and how other processes of the home find it."""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import dataclass
from typing import Final

from dim_pipelines.settings import Home

ORCHESTRATOR_FILE: Final = "orchestrator.json"
"""In the home's `network` folder while an orchestrator runs."""
LOCK_FILE: Final = "orchestrator.lock"


@dataclass(frozen=True, slots=True)
class OrchestratorAddress:
    """What an orchestrator announces once it serves; also the content of `orchestrator.json`.

    Attributes:
        pid: its process id.
        name: IPNS name of its member.
        network: the network's id.
        address: `HOST:PORT` for members.
        door: `HOST:PORT` for those who join.
        metrics: URL of `/metrics`; empty when it is not served.
    """

    pid: int
    name: str
    network: str
    address: str
    door: str
    metrics: str = ""


def find_orchestrator(home: Home) -> OrchestratorAddress | None:
    """Give the orchestrator that runs in a home; None where none does, or not yet."""
    try:
        value = json.loads((home.network / ORCHESTRATOR_FILE).read_text(encoding="utf-8"))
        found = OrchestratorAddress(**value)
        lock = os.open(home.network / LOCK_FILE, os.O_RDONLY | os.O_CLOEXEC)
    except (OSError, ValueError, TypeError):
        return None  # there is none, or it is just starting
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return found
    finally:
        os.close(lock)
    return None  # nobody holds the lock: the file was left by one that was killed
