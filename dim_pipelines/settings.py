"""DIM_HOME: where one installation keeps its state, and the settings that come from the environment."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from platformdirs import user_data_path

from dim_pipelines.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class Home:
    """The folders and files of one DIM_HOME; nothing is made before it is needed.

    Attributes:
        root: the folder itself.
        database_url: SQLAlchemy URL of DIM's own tables (`DIM_DATABASE_URL`, else SQLite in the home).
    """

    root: Path
    database_url: str

    @classmethod
    def at(cls, root: Path | str | None = None) -> Home:
        """Give the home at `root`, else at `DIM_HOME`, else at the platform's data folder.

        Raises:
            ConfigurationError: the path is a file.
        """
        text = str(root) if root is not None else os.environ.get("DIM_HOME", "")
        path = (Path(text).expanduser() if text else user_data_path("dim", appauthor=False)).absolute()
        if path.exists() and not path.is_dir():
            raise ConfigurationError(f"DIM_HOME is not a folder: {path}")
        url = os.environ.get("DIM_DATABASE_URL", "") if root is None else ""
        return cls(path, url or f"sqlite:///{path / 'dim.db'}")

    @property
    def store(self) -> Path:
        """The embedded content store."""
        return self.root / "store"

    @property
    def node_key(self) -> Path:
        """The daemon's key: it signs receipts and records, never models or grants."""
        return self.root / "keys" / "node.key"

    @property
    def user_key(self) -> Path:
        """The person's key: it signs models and local grants."""
        return self.root / "keys" / "user.key"

    @property
    def keys(self) -> Path:
        """The folder of all keys; none of them ever leaves the machine."""
        return self.root / "keys"

    @property
    def network(self) -> Path:
        """Membership in a network: which one, its newest roster, the certificates; missing before a network exists."""
        return self.root / "network"

    @property
    def trusted(self) -> Path:
        """Whom this home trusts."""
        return self.root / "trusted.yaml"

    @property
    def dagster(self) -> Path:
        """DAGSTER_HOME of this installation."""
        return self.root / "dagster"

    @property
    def logs(self) -> Path:
        """Log files of the processes that `dim up` starts."""
        return self.root / "logs"

    @property
    def write_ahead(self) -> Path:
        """Outcomes of running batches that are not yet in a journal segment, a file per batch."""
        return self.root / "write-ahead"

    @property
    def outputs(self) -> Path:
        """Joined tables of batches whose user named no place."""
        return self.root / "outputs"

    @property
    def node(self) -> Path:
        """The daemon's own state: model cache, epochs, scratch, and `node.json` while it runs."""
        return self.root / "node"

    @property
    def nodes(self) -> Path:
        """Homes of the local nodes that `dim up` and `dim demo` start."""
        return self.root / "nodes"
