"""DAGSTER_HOME: settings that Dagster accepts, written once, never over a person's own."""

from __future__ import annotations

from pathlib import Path

import dagster as dg
import pytest
import yaml

from dim_pipelines.errors import ConfigurationError
from dim_pipelines.orchestrator.dagster_daemon import add_partition
from dim_pipelines.orchestrator.dagster_instance import (
    DAGSTER_YAML,
    DEFINITIONS,
    LOCATION,
    MARK,
    PARTITIONS,
    write_dagster_home,
)
from dim_pipelines.settings import Home

ROOT = Path(__file__).parents[3]


def test_the_deployments_file_is_the_text_that_dim_writes() -> None:
    assert (ROOT / "deployment" / "dagster" / "dagster.yaml").read_text(encoding="utf-8") == DAGSTER_YAML


def test_the_home_and_the_checkout_name_the_same_code_location(tmp_path: Path) -> None:
    folder = write_dagster_home(Home.at(tmp_path))
    (module,) = yaml.safe_load((folder / "workspace.yaml").read_text())["load_from"]

    assert module["python_module"] == {"module_name": DEFINITIONS, "attribute": "defs", "location_name": LOCATION}
    assert yaml.safe_load((ROOT / "workspace.yaml").read_text()) == {"load_from": [module]}


def test_dagster_accepts_the_settings(tmp_path: Path) -> None:
    folder = write_dagster_home(Home.at(tmp_path))
    with dg.DagsterInstance.from_config(str(folder)) as instance:
        assert not instance.telemetry_enabled
        assert not instance.nux_enabled
        assert instance.get_concurrency_config().run_queue_config is not None


def test_a_persons_own_file_is_kept(tmp_path: Path) -> None:
    home = Home.at(tmp_path)
    folder = write_dagster_home(home)
    (folder / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    write_dagster_home(home)

    assert (folder / "dagster.yaml").read_text() == "telemetry: {enabled: false}\n"


def test_a_file_of_an_older_dim_is_brought_up_to_date(tmp_path: Path) -> None:
    home = Home.at(tmp_path)
    folder = write_dagster_home(home)
    (folder / "dagster.yaml").write_text(f"{MARK} something older\n")
    write_dagster_home(home)

    assert yaml.safe_load((folder / "dagster.yaml").read_text()) == yaml.safe_load(DAGSTER_YAML)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "dagster").write_text("a file")
    with pytest.raises(ConfigurationError, match=f"cannot write {tmp_path}"):
        write_dagster_home(Home.at(tmp_path))


def test_a_partition_is_added_once(tmp_path: Path) -> None:
    home = Home.at(tmp_path)
    add_partition(home, "b1")
    add_partition(home, "b1")
    with dg.DagsterInstance.from_config(str(home.dagster)) as instance:
        assert instance.get_dynamic_partitions(PARTITIONS) == ["b1"]


def test_an_instance_that_does_not_open_is_a_clear_error(tmp_path: Path) -> None:
    home = Home.at(tmp_path)
    home.dagster.mkdir()
    (home.dagster / "dagster.yaml").write_text("nonsense: 1\n")
    with pytest.raises(ConfigurationError, match=r"the Dagster instance in .* does not open"):
        add_partition(home, "b1")
