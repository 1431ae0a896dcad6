"""`trusted.yaml`: the keys whose batches a node runs and whose models it loads.

A home always trusts its own user key. The file is written whole and renamed into place.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dim_pipelines.errors import ConfigurationError
from dim_pipelines.identity.keys import format_public_key, parse_public_key


@dataclass(frozen=True, slots=True)
class Trust:
    """Whom a home trusts.

    Attributes:
        submitters: keys whose grants a node honours (32 bytes each).
        publishers: keys whose signed models a node loads.
    """

    submitters: frozenset[bytes] = frozenset()
    publishers: frozenset[bytes] = frozenset()

    def including(self, key: bytes) -> Trust:
        """Give the same trust with one more submitter and publisher."""
        return Trust(self.submitters | {key}, self.publishers | {key})


def load_trust(path: Path) -> Trust:
    """Read `trusted.yaml`; a missing file is an empty one.

    Raises:
        ConfigurationError: the file cannot be read or holds something else.
    """
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except FileNotFoundError:
        return Trust()
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigurationError(f"cannot read {path}: {error}") from error
    if not isinstance(value, Mapping) or set(value) - {"submitters", "publishers"}:
        raise ConfigurationError(f"{path} holds something else than the lists 'submitters' and 'publishers'")
    return Trust(_keys(value, "submitters", path), _keys(value, "publishers", path))


def save_trust(path: Path, trust: Trust) -> None:
    """Write `trusted.yaml` (mode 0600), whole or not at all."""
    lists = {
        "submitters": sorted(format_public_key(key) for key in trust.submitters),
        "publishers": sorted(format_public_key(key) for key in trust.publishers),
    }
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor, fresh = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # mode 0600
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(yaml.safe_dump(lists))
        Path(fresh).replace(path)
    except BaseException:
        Path(fresh).unlink(missing_ok=True)
        raise


def _keys(value: Mapping[str, Any], name: str, path: Path) -> frozenset[bytes]:
    listed = value.get(name) or []
    if not isinstance(listed, list) or not all(isinstance(item, str) for item in listed):
        raise ConfigurationError(f"{path}: {name!r} is not a list of keys")
    return frozenset(parse_public_key(item) for item in listed)
