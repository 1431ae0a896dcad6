"""Questions of `dim doctor` that need nothing but the home and the machine: disk, keys, memory, database, Kubo."""

from __future__ import annotations

import asyncio
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from dim_pipelines.cli.doctor_findings import Finding, Question
from dim_pipelines.domain.ipns import ipns_name

if TYPE_CHECKING:
    from dim_pipelines.settings import Home

GIB: Final = 1 << 30
LITTLE_DISK: Final = 5 * GIB
"""Free bytes below which a batch of pictures may fill the disk."""
NO_DISK: Final = GIB // 2
LITTLE_MEMORY: Final = 2 * GIB
"""Free bytes below which an engine process (0.5 GiB and its models) may be killed by the system."""
_ENGINE_MEMORY: Final = GIB // 2
_SHOWN: Final = 8


def questions(home: Home) -> dict[str, Question]:
    """Give the questions by name, in the order in which they are shown."""

    def inside(name: str, check: Callable[[str, Home], Finding]) -> Question:
        return lambda: asyncio.to_thread(check, name, home)

    checks = {
        "home": check_home,
        "keys": check_keys,
        "memory": check_memory,
        "confinement": check_confinement,
        "database": check_database,
    }
    return {name: inside(name, check) for name, check in checks.items()}


def check_home(name: str, home: Home) -> Finding:
    """Ask whether the home can be written, and what the disk has left."""
    root = home.root
    if not root.exists():
        return Finding(name, "unknown", f"{root} does not exist yet", "the first command that needs it makes it")
    if not os.access(root, os.W_OK | os.X_OK):
        return Finding(
            name, "bad", f"{root} cannot be written", f"chown it to you, or set DIM_HOME; mode {_mode(root)}"
        )
    free = shutil.disk_usage(root).free
    text = f"{root}, {free / GIB:.1f} GiB free"
    if free < NO_DISK:
        return Finding(name, "bad", text, "free some space: `dim gc` removes what no batch needs any more")
    if free < LITTLE_DISK:
        return Finding(name, "warning", text, "`dim gc` removes what no batch needs any more")
    return Finding(name, "good", text)


def check_keys(name: str, home: Home) -> Finding:
    """Ask whether the keys can be read by their owner and by nobody else."""
    from dim_pipelines.identity.keys import load_or_create_key, public_bytes

    files = sorted(path for path in home.keys.glob("*") if path.is_file()) if home.keys.is_dir() else []
    if not files:
        return Finding(name, "unknown", "there are none yet", "`dim node start` or `dim network join` makes them")
    open_ = [path for path in files if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO)]
    if open_:
        shown = ", ".join(f"{path.name} ({_mode(path)})" for path in open_[:_SHOWN])
        return Finding(name, "bad", f"others may read: {shown}", f"chmod 600 {' '.join(map(str, open_))}")
    details = []
    for path, whose in ((home.node_key, "node"), (home.user_key, "user")):
        if path.exists():  # never make one: looking changes nothing
            details.append(f"{whose} {ipns_name(public_bytes(load_or_create_key(path)))}")
    return Finding(name, "good", ", ".join(path.name for path in files), details=tuple(details))


def check_memory(name: str, home: Home) -> Finding:
    """Ask how much memory is free for engine processes and their models."""
    free = free_memory(Path("/proc/meminfo"))
    if free is None:
        return Finding(name, "unknown", "this system does not say how much memory is free")
    text = f"{free / GIB:.1f} GiB free"
    if free < _ENGINE_MEMORY:
        return Finding(name, "bad", text, "an engine process with torch needs half a GiB besides its models")
    if free < LITTLE_MEMORY:
        return Finding(name, "warning", text, "a model may find no room; end something, or run fewer nodes here")
    return Finding(name, "good", text)


def free_memory(source: Path) -> int | None:
    """Read the bytes that a new process could use (`MemAvailable` of proc(5)); None where the system does not say."""
    try:
        lines = source.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def check_database(name: str, home: Home) -> Finding:
    """Ask whether DIM's database opens, and what it knows of nodes."""
    path = home.root / "dim.db"
    if home.database_url == f"sqlite:///{path}" and not path.exists():
        return Finding(name, "unknown", "there is none yet: no batch was submitted and no orchestrator ran here")
    from dim_pipelines.database.engine import open_database
    from dim_pipelines.discovery.node_table import NodeTable

    database = open_database(home.database_url)
    rows = NodeTable(database).rows()
    if not rows:
        return Finding(name, "good", "it answers; it knows no nodes")
    states: dict[str, int] = {}
    for row in rows:
        states[row.state] = states.get(row.state, 0) + 1
    text = "it answers; nodes: " + ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
    unwell = [row for row in rows if row.state != "ELIGIBLE"]
    details = [f"{row.label} {row.state}: {row.reason or 'no reason given'}" for row in unwell[:_SHOWN]]
    details += [f"and {len(unwell) - _SHOWN} more: dim nodes"] if len(unwell) > _SHOWN else []
    return Finding(name, "good" if states.get("ELIGIBLE") else "warning", text, details=tuple(details))


def check_confinement(name: str, home: Home) -> Finding:
    """Ask whether engine processes can be confined here."""
    from dim_pipelines.node.confinement import unavailable

    reason = unavailable()
    if reason:
        hint = "programs (.pt2) are taken from this home's own key only; models of weights run as everywhere"
        return Finding(name, "warning", reason, hint)
    return Finding(name, "good", "engine processes are kept from files, sockets and programs")


def _mode(path: Path) -> str:
    return oct(stat.S_IMODE(path.stat().st_mode))[2:]
