"""Files of keys and membership: only their owner reads them, and they are there whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from dim_pipelines.errors import ConfigurationError


def write_whole(path: Path, data: bytes) -> None:
    """Write a file (mode 0600) and bring it to the disk, replacing the one before at once.

    Raises:
        ConfigurationError: it cannot be written.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = _fresh(path, data)
        try:
            fresh.replace(path)
        except OSError:
            fresh.unlink()
            raise
        _sync_folder(path.parent)
    except OSError as error:
        raise ConfigurationError(f"cannot write {path}: {error.strerror}") from error


def create_once(path: Path, data: bytes) -> bytes:
    """Write a file (mode 0600) unless there is one; several that do it at once end with the same content.

    Returns:
        What the file holds.

    Raises:
        ConfigurationError: it cannot be written or read.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = _fresh(path, data)
        try:
            with contextlib.suppress(FileExistsError):
                os.link(fresh, path)
        finally:
            fresh.unlink()
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"cannot write {path}: {error.strerror}") from error


def _fresh(path: Path, data: bytes) -> Path:
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # mode 0600
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return Path(name)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
