"""`controls.yaml`: written whole by `dim node …`, or by its owner with an editor; read again when it has changed."""

from __future__ import annotations

import logging
import os
import tempfile
from pathlib import Path
from typing import Final

import yaml

from dim_pipelines.errors import ConfigurationError
from dim_pipelines.node.controls import Controls, read_controls
from dim_pipelines.settings import Home

log = logging.getLogger(__name__)

_MAX_BYTES: Final = 64 << 10


def controls_path(home: Home) -> Path:
    """Give the place of a home's controls."""
    return home.node / "controls.yaml"


def load_controls(path: Path) -> Controls:
    """Read controls; a missing file allows everything.

    Raises:
        ConfigurationError: it cannot be read, or holds something else.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise ConfigurationError("it is too large")
        return read_controls(yaml.safe_load(data.decode("utf-8")) or {})
    except FileNotFoundError:
        return Controls()
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigurationError(f"cannot read {path}: {' '.join(str(error).split())}") from error
    except ConfigurationError as error:
        raise ConfigurationError(f"{path}: {error.message}", hint=error.hint) from error


def save_controls(path: Path, controls: Controls) -> None:
    """Write controls (mode 0600), whole or not at all.

    Raises:
        ConfigurationError: the folder cannot be written.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor, fresh = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # mode 0600
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(yaml.safe_dump(controls.to_plain(), sort_keys=False, allow_unicode=True))
            Path(fresh).replace(path)
        except BaseException:
            Path(fresh).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise ConfigurationError(f"cannot write {path}: {error.strerror}") from error


class ControlsFile:
    """The controls in force: those of the file, or the last good ones while the file is wrong.

    Attributes:
        error: why the file is not in force; empty: it is.
    """

    def __init__(self, path: Path) -> None:
        """Read the file for the first time.

        Raises:
            ConfigurationError: it is wrong: a daemon does not start with rules that nobody can read.
        """
        self._path = path
        self._seen = self._stamp()
        self._controls = load_controls(path)
        self.error = ""

    def current(self) -> Controls:
        """Give the controls in force; one look at the file's date where it has not changed."""
        stamp = self._stamp()
        if stamp != self._seen:
            self._seen = stamp
            try:
                self._controls = load_controls(self._path)
                self.error = ""
            except ConfigurationError as error:
                self.error = error.message
                log.warning("the controls before stay in force: %s", error.message)
        return self._controls

    def _stamp(self) -> tuple[int, int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_ino, found.st_size
