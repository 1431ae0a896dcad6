"""Which node daemons of this machine are alive: found by the `node.json` that each writes while it runs."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from dim_pipelines.settings import Home


@dataclass(frozen=True, slots=True)
class LocalNode:
    """A daemon of this machine: its name, gRPC address and process id."""

    name: str
    address: str
    pid: int


def find_local_nodes(home: Home) -> list[LocalNode]:
    """List the live daemons of the home itself and of the homes under its `nodes/`, by name.

    A `node.json` that a killed daemon left behind is passed over; whether the node answers is not asked here.
    """
    files = [home.node / "node.json", *sorted(home.nodes.glob("*/node/node.json"))]
    found = [node for file in files if (node := _read(file)) is not None]
    return sorted(found, key=lambda node: node.name)


def _read(file: Path) -> LocalNode | None:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
        node = LocalNode(str(value["name"]), str(value["address"]), int(value["pid"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None  # missing, or being written: there is no daemon to speak to
    return node if _is_alive(node.pid) else None


def _is_alive(pid: int) -> bool:
    """Tell whether the process runs; a zombie does not, though signals still reach it."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return True  # no /proc on this system: the signal's word stands
    return status.rpartition(")")[2].split()[0] not in ("Z", "X")
