"""Which store and nodes a resource means: what is configured, then the environment, then what runs for the home."""

from __future__ import annotations

import json
import os
from pathlib import Path

import dagster as dg
import pytest

from dim_pipelines.orchestrator.running import Running, announce
from dim_pipelines.resources.content_store import ContentStoreResource
from dim_pipelines.resources.database import DatabaseResource
from dim_pipelines.resources.home import HomeResource
from dim_pipelines.resources.node_pool import NodePoolResource
from dim_pipelines.resources.portal import PortalResource, process_portal
from dim_pipelines.settings import Home

KUBO = "/ip4/127.0.0.1/tcp/5999"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("DIM_HOME", str(tmp_path))
    monkeypatch.delenv("DIM_IPFS", raising=False)
    monkeypatch.delenv("DIM_NODES", raising=False)
    return Home.at(tmp_path)


def test_the_store_is_embedded_where_nothing_is_said() -> None:
    assert ContentStoreResource().resolve() == "embedded"


def test_the_store_of_dim_up_is_used(home: Home) -> None:
    with announce(home) as tell:
        tell(Running(os.getpid(), KUBO, "http://127.0.0.1:3000"))
        assert ContentStoreResource().resolve() == KUBO


def test_a_named_store_wins(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    with announce(home) as tell:
        tell(Running(os.getpid(), KUBO, "http://127.0.0.1:3000"))
        monkeypatch.setenv("DIM_IPFS", "embedded")
        assert ContentStoreResource().resolve() == "embedded"
        assert ContentStoreResource(ipfs="http://127.0.0.1:7").resolve() == "http://127.0.0.1:7"


def test_nodes_are_those_of_dim_up_then_those_that_live(home: Home) -> None:
    home.node.mkdir(parents=True)
    (home.node / "node.json").write_text(json.dumps({"name": "own", "address": "unix:/own", "pid": os.getpid()}))

    assert NodePoolResource().resolve() == ["unix:/own"]
    with announce(home) as tell:
        tell(Running(os.getpid(), "embedded", "http://127.0.0.1:3000", ("unix:/a", "unix:/b")))
        assert NodePoolResource().resolve() == ["unix:/a", "unix:/b"]


def test_named_nodes_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIM_NODES", "unix:/a, 127.0.0.1:7,")

    assert NodePoolResource().resolve() == ["unix:/a", "127.0.0.1:7"]
    assert NodePoolResource(addresses=["unix:/c"]).resolve() == ["unix:/c"]


def test_resources_build_plain_objects_that_share_a_loop(home: Home) -> None:
    resources = {
        "home": HomeResource(),
        "database": DatabaseResource(),
        "portal": PortalResource(),
        "content_store": ContentStoreResource(),
        "node_pool": NodePoolResource(addresses=["unix:/a"]),
    }
    with dg.build_resources(resources) as built:
        assert built.home == home
        assert built.portal is process_portal()
        assert built.node_pool.addresses == ("unix:/a",)
        assert built.portal.call(built.content_store.pins()) == []
        assert (home.root / "dim.db").exists()
        built.database.close()
    assert (home.store).is_dir()


def test_every_setting_is_described() -> None:
    for resource in (ContentStoreResource, DatabaseResource, NodePoolResource):
        assert all(field.description for field in resource.model_fields.values())
