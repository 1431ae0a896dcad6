"""The config of a Kubo for DIM, its ports, and addresses of its RPC."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from dim_pipelines.content.kubo_address import SECRET_VARIABLE, find_secret, keep_secret, secret_of
from dim_pipelines.content.kubo_config import private_config, read_peers
from dim_pipelines.content.kubo_ports import is_free, with_port
from dim_pipelines.errors import ConfigurationError
from dim_pipelines.settings import Home

OWN = {"Identity": {"PeerID": "me"}, "Datastore": {"Spec": {"mounts": [{"type": "flatfs", "sync": False}]}}}


def config(**options: Any) -> dict[str, Any]:
    return private_config(OWN, **options)


def test_names_go_through_the_lan_alone() -> None:
    routing = config()["Routing"]
    assert routing["Type"] == "custom"
    assert routing["Routers"]["Lan"]["Parameters"]["PublicIPNetwork"] is False
    assert {method["RouterName"] for method in routing["Methods"].values()} == {"Lan"}
    assert set(routing["Methods"]) == {"find-providers", "provide", "find-peers", "get-ipns", "put-ipns"}


def test_the_rpc_asks_for_the_secret_and_stays_on_loopback() -> None:
    made = config(secret="s", listen=("/ip4/0.0.0.0/tcp/4001",))
    assert made["API"]["Authorizations"] == {"dim": {"AuthSecret": "bearer:s", "AllowedPaths": ["/api/v0"]}}
    assert made["Addresses"]["API"].startswith("/ip4/127.0.0.1/")
    assert made["Addresses"]["Swarm"] == ["/ip4/0.0.0.0/tcp/4001"]
    assert made["Addresses"]["Gateway"] == []
    assert made["Bootstrap"] == []


def test_it_keeps_connections_to_its_peers_and_not_to_itself() -> None:
    peers = [
        "/ip4/10.0.0.1/tcp/1/p2p/a",
        "/ip6/fd00::1/tcp/1/p2p/a",
        "/ip4/10.0.0.2/tcp/1/p2p/me",
        "/dns/x/tcp/1/p2p/b",
    ]
    assert config(peers=peers)["Peering"]["Peers"] == [
        {"ID": "a", "Addrs": ["/ip4/10.0.0.1/tcp/1", "/ip6/fd00::1/tcp/1"]},
        {"ID": "b", "Addrs": ["/dns/x/tcp/1"]},
    ]
    assert config(listen=())["Addresses"]["Swarm"] == []


@pytest.mark.parametrize(
    "peer", ["", "/p2p/", "a", "/ip4/10.0.0.1/tcp/1", "/ip4/1.2.3.4/tcp/1/p2p/a/b", "10.0.0.1/p2p/a"]
)
def test_what_is_no_peer_is_refused(peer: str) -> None:
    with pytest.raises(ConfigurationError):
        read_peers([peer])


@pytest.mark.parametrize(
    ("wanted", "listens", "found"),
    [
        ("/ip4/127.0.0.1/tcp/0", ["/ip4/127.0.0.1/tcp/4001"], "/ip4/127.0.0.1/tcp/4001"),
        ("/ip4/0.0.0.0/tcp/0", ["/p2p-circuit", "/ip4/10.0.0.1/tcp/7"], "/ip4/0.0.0.0/tcp/7"),
        ("/ip6/::/tcp/0", ["/ip4/10.0.0.1/tcp/7", "/ip6/fd00::1/tcp/8"], "/ip6/::/tcp/8"),
        ("/ip4/127.0.0.1/tcp/0", [], "/ip4/127.0.0.1/tcp/0"),
        ("/ip4/127.0.0.1/tcp/9", ["/ip4/127.0.0.1/tcp/4001"], "/ip4/127.0.0.1/tcp/9"),
    ],
)
def test_the_port_that_was_given_is_kept(wanted: str, listens: list[str], found: str) -> None:
    assert with_port(wanted, listens) == found


def test_a_port_is_free_or_not() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"/ip4/127.0.0.1/tcp/{taken.getsockname()[1]}"
        assert not is_free(address)
    for odd in (
        "",
        "/ip4/127.0.0.1",
        "/ip4/127.0.0.1/udp/1",
        "/ip4/127.0.0.1/tcp/x",
        "/ip4/127.0.0.1/tcp/99999",
        "/ip4/x/tcp/1",
    ):
        assert not is_free(odd)


def test_the_secret_is_found_where_the_kubo_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SECRET_VARIABLE, raising=False)
    home = Home.at(tmp_path)
    address = "/ip4/127.0.0.1/tcp/4711"
    assert find_secret(address, home) is None
    repository = tmp_path / "kubo"
    repository.mkdir()
    (repository / "api").write_text(f"{address}\n")
    assert find_secret(address, home) is None
    (repository / "dim-secret").write_text("one\n")
    assert secret_of(repository) == "one"
    for same in (address, f"{address}/http", "http://127.0.0.1:4711"):
        assert find_secret(same, home) == "one"
    assert find_secret(address, Home.at(home.nodes / "local-1")) == "one"
    assert find_secret("/ip4/127.0.0.1/tcp/4712", home) is None
    monkeypatch.setenv(SECRET_VARIABLE, "theirs")
    assert find_secret("/ip4/127.0.0.1/tcp/4712", home) == "theirs"
    keep_secret(address, "newer")
    assert find_secret(address, home) == "newer"
    keep_secret(address, None)
    assert find_secret(address, home) == "one"
    (repository / "api").write_text("garbage")
    assert find_secret(address, home) == "theirs"
