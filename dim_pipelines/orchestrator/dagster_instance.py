"""DAGSTER_HOME of a DIM_HOME: its `dagster.yaml`, and the commands of Dagster's own processes. Imports no Dagster.

`deployment/dagster/dagster.yaml` is the same text, for people who run Dagster themselves.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final

from dim_pipelines.errors import ConfigurationError
from dim_pipelines.settings import Home

MARK: Final = "# Written by DIM;"
"""How a `dagster.yaml` begins that DIM may write again; one without it belongs to its user and is left alone."""
DEFINITIONS: Final = "dim_pipelines.definitions"
"""The module that Dagster loads."""
PARTITIONS: Final = "batches"
"""The name of the dynamic partitions: one partition per batch, its key is the batch's id."""
NODE_PARTITIONS: Final = "dim_nodes"
"""The name of the dynamic partitions of nodes: one partition per node of the network, its key is the node's label."""
POOL: Final = "batches"
"""The pool whose slots batches take while they compute; without slots they wait."""
LOCATION: Final = "dim"
"""The name of the code location in Dagster's pages; sensors' states and runs' origins carry it."""

DAGSTER_YAML: Final = f"""\
{MARK} remove this line to keep your own changes.
# Storage is SQLite beside this file. https://docs.dagster.io/deployment/oss/oss-instance-configuration
telemetry:
  enabled: false
nux:
  enabled: false                      # the first visit's dialogue covers the page
python_logs:
  managed_python_loggers: [dim_pipelines]
  python_log_level: INFO              # also for what assets log themselves; a line is a row of the event log
concurrency:
  runs:
    max_concurrent_runs: 4            # a run is a batch, and a batch already spreads over every node
  pools:
    granularity: op                   # a batch takes a slot of the pool `batches` while it reads or computes
sensors:
  use_threads: true                   # a slow sensor delays no other
  num_workers: 2
  num_submit_workers: 2
schedules:
  use_threads: true
  num_workers: 2
run_monitoring:
  enabled: true
  start_timeout_seconds: 180
  cancel_timeout_seconds: 60
  poll_interval_seconds: 10
  free_slots_after_run_end_seconds: 60  # a killed run would keep its slot of the pool for ever
retention:
  sensor:
    purge_after_days: {{skipped: 1, success: 30, failure: 30, started: 30}}
  schedule:
    purge_after_days: {{skipped: 1, success: 30, failure: 30, started: 30}}
"""

WORKSPACE_YAML: Final = f"""\
{MARK} remove this line to keep your own changes.
load_from:
  - python_module:
      module_name: {DEFINITIONS}
      attribute: defs
      location_name: {LOCATION}
"""


def write_dagster_home(home: Home) -> Path:
    """Make the home's DAGSTER_HOME, its `dagster.yaml` and `workspace.yaml`; a file without DIM's mark is kept.

    Returns:
        The folder, for the environment variable DAGSTER_HOME.

    Raises:
        ConfigurationError: the folder cannot be written.
    """
    try:
        home.dagster.mkdir(parents=True, exist_ok=True)
        for name, text in (("dagster.yaml", DAGSTER_YAML), ("workspace.yaml", WORKSPACE_YAML)):
            _write(home.dagster / name, text)
    except OSError as error:
        raise ConfigurationError(
            f"cannot write {home.dagster}: {error.strerror}", hint="choose another folder with DIM_HOME"
        ) from error
    return home.dagster


def _write(path: Path, text: str) -> None:
    if path.exists() and not path.read_text(encoding="utf-8").startswith(MARK):
        return
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(path)


def dagster_environment(home: Home) -> dict[str, str]:
    """Give the variables that Dagster's processes need besides the caller's own."""
    return {
        "DAGSTER_HOME": str(home.dagster),
        "DIM_HOME": str(home.root),
        "DAGSTER_DISABLE_TELEMETRY": "yes",
    }


def webserver_command(home: Home, port: int, host: str = "127.0.0.1") -> list[str]:
    """Give the command of the web server. It has no login of its own: do not let it listen beyond this machine."""
    return [sys.executable, "-m", "dagster_webserver", "-h", host, "-p", str(port), "-w", _workspace(home)]


def daemon_command(home: Home) -> list[str]:
    """Give the command of Dagster's daemon, which runs sensors, schedules and the run queue."""
    return [sys.executable, "-m", "dagster._daemon", "run", "-w", _workspace(home)]


def _workspace(home: Home) -> str:
    return str(home.dagster / "workspace.yaml")
