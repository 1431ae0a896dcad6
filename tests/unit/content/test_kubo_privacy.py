from __future__ import annotations

from typing import Any

import pytest

from dim_pipelines.content.kubo_config import private_config
from dim_pipelines.content.kubo_privacy import is_closed

CLOSED: dict[str, Any] = {
    "Bootstrap": [],
    "Routing": {"DelegatedRouters": []},
    "AutoConf": {"Enabled": False},
    "Discovery": {"MDNS": {"Enabled": False}},
}
SPEC = {"Spec": {"mounts": [{"type": "flatfs", "sync": False}, {"type": "levelds"}]}}


def test_a_config_that_finds_nobody_is_closed() -> None:
    assert is_closed(CLOSED, [])
    assert is_closed(CLOSED, ["/ip4/127.0.0.1/tcp/4001", "/ip6/::1/tcp/4001", "/p2p-circuit"])
    assert is_closed(CLOSED, ["/ip4/10.1.2.3/tcp/1", "/ip4/100.64.3.4/tcp/1", "/ip6/fd00::1/tcp/1"])


@pytest.mark.parametrize(
    "change",
    [
        {"Bootstrap": ["auto"]},
        {"Routing": {"DelegatedRouters": ["https://delegated.example"]}},
        {"AutoConf": {}},
        {"AutoConf": {"Enabled": True}},
        {"Discovery": {}},
        {"Discovery": None},
    ],
)
def test_one_way_to_strangers_is_enough(change: dict[str, Any]) -> None:
    assert not is_closed({**CLOSED, **change}, [])


@pytest.mark.parametrize(
    "address", ["/ip4/8.8.8.8/tcp/4001", "/ip6/2600::1/tcp/1", "/dns/example.org/tcp/1", "/ip4/nonsense", "", "/"]
)
def test_a_public_address_is_a_way_to_strangers(address: str) -> None:
    assert not is_closed(CLOSED, ["/ip4/127.0.0.1/tcp/4001", address])


def test_the_config_of_a_home_is_closed_and_durable_and_keeps_the_rest() -> None:
    config = private_config({"Identity": {"PeerID": "x"}, "Routing": None, "Datastore": SPEC, "Swarm": {"Extra": 1}})
    assert is_closed(config, ["/ip4/127.0.0.1/tcp/0"])
    assert config["Identity"] == {"PeerID": "x"}
    assert config["Swarm"]["Extra"] == 1
    assert config["Datastore"]["Spec"]["mounts"][0]["sync"] is True
