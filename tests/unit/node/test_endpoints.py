"""At which addresses a node offers itself."""

from __future__ import annotations

import ipaddress

import pytest

from dim_pipelines.errors import ConfigurationError
from dim_pipelines.node.endpoints import MAX_ENDPOINTS, candidate_endpoints, default_listen, local_addresses
from dim_pipelines.node.networking import own_server


@pytest.mark.parametrize(
    ("known", "listen"),
    [
        ([], "127.0.0.1:0"),
        (["127.0.0.1:7000", "localhost:1", "[::1]:9"], "127.0.0.1:0"),
        (["127.0.0.1:7000", "10.0.0.5:7000"], "0.0.0.0:0"),
        (["100.64.3.4:7000"], "0.0.0.0:0"),
        (["orchestrator.example:7000"], "0.0.0.0:0"),
        (["[fd00::5]:7000", "10.0.0.5:7000"], "[::]:0"),
    ],
)
def test_a_node_listens_on_loopback_only_in_a_network_that_is_all_loopback(known: list[str], listen: str) -> None:
    assert default_listen(known) == listen


def test_endpoints_are_what_others_could_dial() -> None:
    own = ["10.1.2.3", "127.0.0.1", "169.254.1.1", "100.64.0.9", "::1", "fe80::1", "fd00::2", "10.1.2.3"]
    assert candidate_endpoints("0.0.0.0:7000", own) == ("10.1.2.3:7000", "100.64.0.9:7000")
    assert candidate_endpoints("[::]:7000", own) == ("10.1.2.3:7000", "100.64.0.9:7000", "[fd00::2]:7000")
    assert candidate_endpoints("127.0.0.1:7000", own) == ("127.0.0.1:7000",)
    assert candidate_endpoints("10.1.2.3:7000", own) == ("10.1.2.3:7000",)
    assert candidate_endpoints("0.0.0.0:7000", ["127.0.0.1"]) == ()
    many = [f"10.0.0.{number}" for number in range(1, 100)]
    assert len(candidate_endpoints("0.0.0.0:7000", many)) == MAX_ENDPOINTS


def test_what_the_owner_says_replaces_what_the_machine_says() -> None:
    said = ["gpu.example.org:7000", "198.51.100.7:7000", "gpu.example.org:7000"]
    assert candidate_endpoints("0.0.0.0:1", ["10.0.0.1"], said) == ("gpu.example.org:7000", "198.51.100.7:7000")
    with pytest.raises(ConfigurationError):
        candidate_endpoints("0.0.0.0:1", ["10.0.0.1"], ["gpu.example.org"])


def test_the_machines_addresses_begin_with_those_that_lead_to_the_network() -> None:
    found = local_addresses(["127.0.0.1:7000", "nowhere.invalid:1"])
    assert found[0] == "127.0.0.1" and len(found) == len(set(found))
    assert all(ipaddress.ip_address(each) for each in found)


@pytest.mark.parametrize(
    ("secure", "own"),
    [("0.0.0.0:7", "127.0.0.1:7"), ("[::]:7", "[::1]:7"), ("127.0.0.1:7", "127.0.0.1:7"), ("10.0.0.1:7", "10.0.0.1:7")],
)
def test_a_machine_reaches_its_own_listener(secure: str, own: str) -> None:
    assert own_server(secure) == own
