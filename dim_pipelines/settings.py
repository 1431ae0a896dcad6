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
    def settings(self) -> Path:
        """Settings that hold for the whole home, as YAML; missing where all are as they come."""
        return self.root / "settings.yaml"

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


def ranking_settings(home: Home) -> dict[str, object]:
    """Give the weights of the ranking as they were written, by name; what they mean is `scheduling.ranking`'s.

    The file says `ranking: {speed: 3, price: 0}`, and the variable `DIM_RANKING=speed=3,price=0` goes before it.

    Raises:
        ConfigurationError: the file cannot be read, or is no such thing.
    """
    values: dict[str, object] = {}
    if home.settings.exists():
        import yaml

        try:
            read = yaml.safe_load(home.settings.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise ConfigurationError(f"cannot read {home.settings}: {error}") from error
        ranking = (read or {}).get("ranking", {}) if isinstance(read or {}, dict) else None
        if not isinstance(ranking, dict):
            raise ConfigurationError(f"{home.settings} is wrong", hint="it looks like: ranking: {speed: 3, price: 0}")
        values.update({str(name): value for name, value in ranking.items()})
    for part in filter(None, (part.strip() for part in os.environ.get("DIM_RANKING", "").split(","))):
        name, equals, value = part.partition("=")
        if not equals:
            raise ConfigurationError(f"DIM_RANKING holds {part!r}", hint="it looks like: DIM_RANKING=speed=3,price=0")
        values[name.strip()] = value.strip()
    return values
