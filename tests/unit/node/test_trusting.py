"""Whose grants a node honours, and whose programs it loads."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dim_pipelines.domain.grant import Grant
from dim_pipelines.domain.ipns import ipns_name
from dim_pipelines.domain.roster import Limits, Member
from dim_pipelines.errors import Forbidden
from dim_pipelines.identity.authority import issue_grant
from dim_pipelines.identity.keys import load_or_create_key, public_bytes
from dim_pipelines.node.trusting import NodeTrust
from dim_pipelines.testing.networks import MadeNetwork, now_ms


@pytest.fixture
def network(tmp_path: Path) -> MadeNetwork:
    return MadeNetwork(tmp_path)


def grant(network: str, ends: int = 1 << 50) -> Grant:
    return Grant(network=network, batch="b", epoch=1, owner="o", holder=bytes(32), not_after_ms=ends)


def test_a_joined_node_honours_orchestrators_of_the_roster_until_they_are_revoked(
    network: MadeNetwork, tmp_path: Path
) -> None:
    stranger, user = load_or_create_key(tmp_path / "s"), load_or_create_key(tmp_path / "u")
    network.join("ann", "user", "run_host", key=user)
    trust = NodeTrust(roster=lambda: network.roster)
    given = issue_grant(network.key, grant(network.id)).encode()
    assert trust.open_grant(given, now_ms()) == (grant(network.id), public_bytes(network.key))
    for key, its_network, why in (
        (stranger, network.id, "no member"),
        (user, network.id, "no orchestrator"),
        (network.key, "local", "does not trust"),
        (network.key, ipns_name(bytes(32)), "does not trust"),
    ):
        with pytest.raises(Forbidden, match=why):
            trust.open_grant(issue_grant(key, grant(its_network)).encode(), now_ms())
    with pytest.raises(Forbidden, match="ended"):
        trust.open_grant(issue_grant(network.key, grant(network.id, 1)).encode(), now_ms())
    network.revoke(ipns_name(public_bytes(network.key)), "stolen")
    with pytest.raises(Forbidden, match="stolen"):
        trust.open_grant(given, now_ms())
    with pytest.raises(Forbidden, match="stolen"):
        trust.check(grant(network.id), public_bytes(network.key))


def test_the_homes_own_trust_holds_with_a_network_and_without(network: MadeNetwork, tmp_path: Path) -> None:
    own = load_or_create_key(tmp_path / "own")
    for trust in (
        NodeTrust({public_bytes(own)}, {public_bytes(own)}),
        NodeTrust({public_bytes(own)}, {public_bytes(own)}, roster=lambda: network.roster),
    ):
        assert trust.open_grant(issue_grant(own, grant("local")).encode(), now_ms())[1] == public_bytes(own)
        if trust.roster() is not None:  # a batch of the network is its orchestrators' to grant
            with pytest.raises(Forbidden, match="no member"):
                trust.open_grant(issue_grant(own, grant(network.id)).encode(), now_ms())
        assert public_bytes(own) in trust and bytes(32) not in trust and "text" not in trust
    with pytest.raises(Forbidden, match="does not trust"):
        NodeTrust({public_bytes(own)}).open_grant(issue_grant(network.key, grant(network.id)).encode(), now_ms())


def test_a_grant_is_worth_nothing_to_another_member_than_its_holder() -> None:
    own, holder, other = (Ed25519PrivateKey.generate() for _ in range(3))
    held = grant("local").model_copy(update={"holder": hashlib.sha256(public_bytes(holder)).digest()})
    given, trust = issue_grant(own, held).encode(), NodeTrust({public_bytes(own)})
    for caller in ("", ipns_name(public_bytes(holder))):
        assert trust.open_grant(given, now_ms(), caller)[0] == held
    with pytest.raises(Forbidden, match="given to another run worker"):
        trust.open_grant(given, now_ms(), ipns_name(public_bytes(other)))


def test_publishers_of_the_roster_are_trusted_where_the_owner_wants_it_and_while_they_are_members(
    network: MadeNetwork, tmp_path: Path
) -> None:
    publisher = load_or_create_key(tmp_path / "p")
    joined = network.join("pia", "publisher", key=publisher)
    other = network.join("uli", "user", key=load_or_create_key(tmp_path / "u"))
    wide = NodeTrust(roster=lambda: network.roster, roster_publishers=True)
    narrow = NodeTrust(roster=lambda: network.roster)
    assert public_bytes(publisher) in wide and public_bytes(publisher) not in narrow
    assert other.member.key not in wide
    network.revoke(joined.name)
    assert public_bytes(publisher) not in wide


def test_a_members_limit_of_sessions_is_the_rosters(network: MadeNetwork, tmp_path: Path) -> None:
    key = public_bytes(load_or_create_key(tmp_path / "k"))
    trust = NodeTrust(roster=lambda: network.roster)
    assert trust.max_sessions(key) is None and NodeTrust().max_sessions(key) is None
    limits = Limits(max_sessions=3)
    network.admit(Member(key=key, roles=("orchestrator",), owner="o", limits=limits, admitted_ms=now_ms()))
    assert trust.max_sessions(key) == 3
