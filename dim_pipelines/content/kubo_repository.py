"""What lies in the repository of a home's Kubo besides Kubo's own: who holds it, its swarm key, its address."""

from __future__ import annotations

import fcntl
import time
from pathlib import Path
from typing import IO

from dim_pipelines.errors import ConfigurationError


def running_kubo(repository: Path) -> str | None:
    """Give the RPC address of the Kubo that some process keeps running there; None when none does."""
    try:
        with _lock_path(repository).open("r") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        try:
            return (repository / "api").read_text().strip() or None
        except FileNotFoundError:
            return None
    except FileNotFoundError:
        return None
    return None


def read_swarm_key(repository: Path) -> str:
    """Give the 64 hex digits of a repository's swarm key.

    Raises:
        ConfigurationError: it has none.
    """
    try:
        digits = (repository / "swarm.key").read_text().split()[-1]
    except (OSError, IndexError) as error:
        raise ConfigurationError(f"{repository} has no swarm key") from error
    return digits


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner reads, whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.touch(mode=0o600)
    partial.write_text(text)
    partial.replace(path)


def _lock_path(repository: Path) -> Path:
    return repository.parent / "kubo.lock"


def take_lock(repository: Path) -> IO[str]:
    """Hold the lock of a repository for this process; closing the file lets go.

    Raises:
        ConfigurationError: another process holds it, or its folder cannot be written.
    """
    path = _lock_path(repository)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
    except OSError as error:
        raise ConfigurationError(f"cannot write {path}: {error.strerror or error}") from error
    for _ in range(5):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.02)  # `running_kubo` of another process may hold it for a moment
        else:
            return file
    file.close()
    raise ConfigurationError(
        f"another process keeps the Kubo in {repository}", hint="connect to it with --ipfs kubo, or stop it"
    )
