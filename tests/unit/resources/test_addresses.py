"""Which store and nodes a resource means: what is configured, then the environment, then what runs for the home."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

import dagster as dg
import pytest

from dim_pipelines.database.engine import open_database
from dim_pipelines.dispatch.discovered_nodes import DiscoveredNodes
from dim_pipelines.orchestrator.meeting_point import LOCK_FILE, ORCHESTRATOR_FILE, OrchestratorAddress
from dim_pipelines.orchestrator.running import Running, announce
from dim_pipelines.resources.content_store import ContentStoreResource
from dim_pipelines.resources.database import DatabaseResource
from dim_pipelines.resources.home import HomeResource
from dim_pipelines.resources.network import NetworkResource
from dim_pipelines.resources.node_pool import NodePoolResource, uses_network
from dim_pipelines.resources.portal import PortalResource, process_portal
from dim_pipelines.settings import Home
from dim_pipelines.testing.networks import MadeNetwork
from dim_pipelines.wire.lifetime import announced, locked

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


def test_a_member_uses_its_networks_nodes_unless_others_are_named(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not uses_network(home, [])
    network = MadeNetwork(tmp_path / "made")
    host = network.orchestrator.home
    assert uses_network(host, NodePoolResource().named())
    assert not uses_network(host, NodePoolResource(addresses=["unix:/a"]).named())
    monkeypatch.setenv("DIM_NODES", "unix:/a")
    assert not uses_network(host, NodePoolResource().named())
    monkeypatch.setenv("DIM_NODES", "network")
    assert uses_network(host, NodePoolResource().named())
    monkeypatch.delenv("DIM_NODES")
    assert not uses_network(network.join("ann", "node").home, [])


def test_a_member_gets_a_pool_of_discovered_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = MadeNetwork(tmp_path / "made").orchestrator.home
    monkeypatch.setenv("DIM_HOME", str(host.root))
    with dg.build_resources({"node_pool": NodePoolResource()}) as built:
        assert isinstance(built.node_pool, DiscoveredNodes)
    open_database(host.database_url).close()


def test_a_home_without_a_network_has_an_empty_view(home: Home) -> None:
    with dg.build_resources({"network": NetworkResource()}) as built:
        assert (built.network.network, built.network.survey, built.network.in_use) == ("", None, False)
        assert built.network.table.rows() == []
    open_database(home.database_url).close()


def test_a_member_looks_for_nodes_itself_unless_an_orchestrator_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = MadeNetwork(tmp_path / "made")
    host = network.orchestrator.home
    monkeypatch.setenv("DIM_HOME", str(host.root))
    with dg.build_resources({"network": NetworkResource(quorum=3)}) as built:
        assert (built.network.network, built.network.in_use, built.network.quorum) == (network.id, True, 3)
        first = built.network.survey
        assert first is not None
    with dg.build_resources({"network": NetworkResource()}) as built:
        assert built.network.survey.__self__ is first.__self__  # it remembers since when it listens
    address = OrchestratorAddress(os.getpid(), network.orchestrator.name, network.id, "127.0.0.1:1", "127.0.0.1:2")
    with (
        locked(host.network, LOCK_FILE, "an orchestrator"),
        announced(host.network / ORCHESTRATOR_FILE, asdict(address)),
        dg.build_resources({"network": NetworkResource()}) as built,
    ):
        assert built.network.survey is None
    open_database(host.database_url).close()


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
    for resource in (ContentStoreResource, DatabaseResource, NetworkResource, NodePoolResource):
        assert all(field.description for field in resource.model_fields.values())
