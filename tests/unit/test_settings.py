from __future__ import annotations

from pathlib import Path

import pytest

from dim_pipelines.errors import ConfigurationError
from dim_pipelines.settings import Home, ranking_settings


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DIM_HOME", str(tmp_path / "environment"))
    monkeypatch.delenv("DIM_DATABASE_URL", raising=False)


def test_an_argument_is_stronger_than_the_environment_and_that_than_the_platform(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Home.at(tmp_path).root == tmp_path
    assert Home.at().root == tmp_path / "environment"
    monkeypatch.delenv("DIM_HOME")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert Home.at().root.name == "dim"


def test_a_tilde_is_the_persons_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Home.at("~/dim").root == tmp_path / "dim"


def test_the_database_is_in_the_home_unless_the_environment_names_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Home.at().database_url == f"sqlite:///{tmp_path / 'environment' / 'dim.db'}"
    monkeypatch.setenv("DIM_DATABASE_URL", "postgresql+psycopg2://db/dim")
    assert Home.at().database_url == "postgresql+psycopg2://db/dim"
    assert Home.at(tmp_path).database_url.startswith("sqlite:///")


def test_a_file_is_no_home(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="DIM_HOME is not a folder"):
        Home.at(tmp_path / "file")


def test_every_place_lies_in_the_home_and_is_another(tmp_path: Path) -> None:
    home = Home.at(tmp_path)
    names = [name for name, value in vars(Home).items() if isinstance(value, property)]
    places = [getattr(home, name) for name in names]
    assert len(places) == len(set(places))
    assert all(place.is_relative_to(tmp_path) for place in places)
    assert not any(tmp_path.iterdir()), "nothing is made before it is needed"


def test_ranking_weights_come_from_the_file_and_the_environment_goes_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = Home.at(tmp_path)
    assert ranking_settings(home) == {}
    home.settings.write_text("ranking: {speed: 4, price: 0}\nother: 1\n")
    monkeypatch.setenv("DIM_RANKING", " price=2.5, model=1 ,")
    assert ranking_settings(home) == {"speed": 4, "price": "2.5", "model": "1"}
    monkeypatch.setenv("DIM_RANKING", "price")
    with pytest.raises(ConfigurationError, match="DIM_RANKING holds 'price'"):
        ranking_settings(home)
    monkeypatch.delenv("DIM_RANKING")
    home.settings.write_text("")
    assert ranking_settings(home) == {}
    for wrong in ("ranking: 3", "- a list", "ranking: {"):
        home.settings.write_text(wrong)
        with pytest.raises(ConfigurationError, match=r"settings\.yaml"):
            ranking_settings(home)
