"""What `dim up` runs for a home, so that commands in other terminals reach the same content and pages.

Kept in `up.json` in the home while `dim up` lives; a file that a killed one left behind is passed over.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

from dim_pipelines.errors import ConfigurationError
from dim_pipelines.settings import Home


@dataclass(frozen=True, slots=True)
class Running:
    """What runs.

    Attributes:
        pid: the process id of `dim up`.
        ipfs: `embedded`, or the address of the Kubo in use.
        page: URL of Dagster's page.
        nodes: addresses of the nodes that it started.
        orchestrator: `HOST:PORT` of the orchestrator that it started; empty where another one is used.
    """

    pid: int
    ipfs: str
    page: str
    nodes: tuple[str, ...] = ()
    orchestrator: str = ""


@contextmanager
def announce(home: Home) -> Iterator[Callable[[Running], None]]:
    """Be the one `dim up` of a home while the block runs; the block says what runs by calling what it is given.

    Raises:
        ConfigurationError: another process has announced itself for this home, or the home cannot be written.
    """
    path = home.root / "up.json"
    try:
        home.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(home.root / "up.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigurationError(f"cannot write {home.root}: {error.strerror}") from error
    try:
        try:
            _take(lock)
        except BlockingIOError as error:
            other = find_running(home)
            whom = f" (process {other.pid}, {other.page})" if other is not None else ""
            raise ConfigurationError(
                f"dim up runs already for {home.root}{whom}", hint="use that one, or another folder with DIM_HOME"
            ) from error

        def tell(running: Running) -> None:
            fresh = path.with_name(f".up.json.{os.getpid()}")
            fresh.write_text(json.dumps(asdict(running)), encoding="utf-8")
            fresh.replace(path)

        path.unlink(missing_ok=True)  # left by one that was killed
        try:
            yield tell
        finally:
            path.unlink(missing_ok=True)
    finally:
        os.close(lock)


def _take(lock: int) -> None:
    for wait_s in (0.05, 0.1, 0.2, None):
        try:
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if wait_s is None:
                raise
            time.sleep(wait_s)  # a command that only looks (`find_running`) holds it for a moment
    return None


def find_running(home: Home) -> Running | None:
    """Give what `dim up` runs for the home, or None where it does not run."""
    try:
        lock = os.open(home.root / "up.lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _read(home)
    finally:
        os.close(lock)
    return None  # nobody holds the lock: whatever stands in the file is over


def _read(home: Home) -> Running | None:
    try:
        value = json.loads((home.root / "up.json").read_text(encoding="utf-8"))
        return Running(
            int(value["pid"]),
            str(value["ipfs"]),
            str(value["page"]),
            tuple(map(str, value["nodes"])),
            str(value.get("orchestrator", "")),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None  # it is just starting
