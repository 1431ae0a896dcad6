"""How a network begins, and how the nodes of one's own machine get into it. Calls block."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dim_pipelines.database.engine import open_database
from dim_pipelines.discovery.roster_record import make_root_record
from dim_pipelines.domain.ipns import ipns_name
from dim_pipelines.domain.roster import Member, Role
from dim_pipelines.errors import ConfigurationError, Forbidden
from dim_pipelines.identity.certificates import client_public_key, load_or_create_ca, store_client
from dim_pipelines.identity.files import write_whole
from dim_pipelines.identity.keys import load_or_create_key, public_bytes
from dim_pipelines.identity.membership import Door, Membership
from dim_pipelines.identity.roster import RosterView, found_network
from dim_pipelines.orchestrator.admissions import Admissions, admission_key_path, load_key, root_key_path
from dim_pipelines.orchestrator.door import keep
from dim_pipelines.orchestrator.roster_roads import root_record_path
from dim_pipelines.orchestrator.rosters import Rosters
from dim_pipelines.settings import Home
from dim_pipelines.wire.access import Peer
from dim_pipelines.wire.tls import certificate_hash

FOUNDER_ROLES: Final[tuple[Role, ...]] = ("orchestrator", "run_host", "publisher", "user")
"""What the home becomes that founds a network; its nodes have keys of their own."""


@dataclass(frozen=True, slots=True)
class Editor:
    """A home that edits its network's roster."""

    membership: Membership
    admissions: Admissions


def found(home: Home, label: str, owner: str, now_ms: int) -> Membership:
    """Make a network whose first member is this home.

    Args:
        home: gets the root key, the admission key, and the membership.
        label: the member's name for people.
        owner: whom it belongs to.
        now_ms: Unix time in milliseconds.

    Raises:
        ConfigurationError: the home is in a network, or a root key lies in it.
    """
    if (before := Membership.load(home)) is not None:
        raise ConfigurationError(
            f"this home is in a network already: {before.network}", hint="use another DIM_HOME for another network"
        )
    root = load_or_create_key(root_key_path(home))
    admission = load_or_create_key(admission_key_path(home))
    user = public_bytes(load_or_create_key(home.user_key))
    founder = Member(key=user, roles=FOUNDER_ROLES, owner=owner, label=label, admitted_ms=now_ms)
    signed, pages = found_network(root, admission, [founder], now_ms)
    membership = Membership.create(
        home,
        network=ipns_name(public_bytes(root)),
        name=ipns_name(user),
        roles=FOUNDER_ROLES,
        signed=signed,
        pages=pages,
        now_ms=now_ms,
        swarm_key=secrets.token_bytes(32),
    )
    Rosters(open_database(home.database_url), membership.network).keep(membership.roster, now_ms)
    keep_root_record(home, root, membership.roster)
    return membership


def keep_root_record(home: Home, root_key: Ed25519PrivateKey, view: RosterView) -> None:
    """Keep the record under the network's name, so that it can be published while the root key is elsewhere."""
    write_whole(root_record_path(home), make_root_record(root_key, view.roster.delegation))


def open_editor(home: Home, now_ms: int) -> Editor:
    """Give what edits the roster of a home's network, with the newest roster in the home.

    Raises:
        ConfigurationError: the home is in no network.
    """
    membership = Membership.load(home)
    if membership is None:
        raise ConfigurationError(
            "this home is in no network", hint="make one: dim network init; or join one: dim network join INVITE"
        )
    rosters = Rosters(open_database(home.database_url), membership.network)
    if (newest := rosters.newest()) is not None:
        keep(membership, newest, now_ms)
    return Editor(membership, Admissions(rosters, load_key(admission_key_path(home))))


def adopt(home: Home, nodes: Sequence[tuple[Path, str]], now_ms: int) -> None:
    """Make nodes of this machine members of the home's network, without an invite: the home holds all that it needs.

    Args:
        home: holds the admission key and a CA of the roster.
        nodes: the home of each node, and its label.
        now_ms: Unix time in milliseconds.

    Raises:
        Forbidden: the admission key is not here, or a node's key was revoked.
        ConfigurationError: a node's home is in another network.
    """
    editor = open_editor(home, now_ms)
    membership = editor.membership
    own = membership.member
    if own.ca is None or own.certificate is None:
        raise Forbidden("the roster names no CA of this home", hint="start its orchestrator: dim orchestrator start")
    homes = [(Home.at(folder), label) for folder, label in nodes]
    members = [_member(membership, each, label, now_ms) for each, label in homes]
    keep(membership, editor.admissions.admit(membership.roster, members, now_ms), now_ms)
    ca = load_or_create_ca(home, membership.network, membership.name)
    pin = certificate_hash(own.certificate)
    for (each, _), member in zip(homes, members, strict=True):
        name = ipns_name(member.key)
        peer = Peer(membership.network, "node", name)
        store_client(each, "node", ca.issue(client_public_key(each), peer, now_ms))
        Membership.create(
            each,
            network=membership.network,
            name=name,
            roles=("node",),
            signed=membership.roster.signed,
            pages=membership.roster.pages,
            now_ms=now_ms,
            doors=[Door(door, pin) for door in own.doors],
            swarm_key=membership.swarm_key,
            kubo_peers=membership.kubo_peers,
        )


def _member(membership: Membership, node: Home, label: str, now_ms: int) -> Member:
    """Give the entry of a node; an equal one, with its first day, where it has one: that makes no new version."""
    key = public_bytes(load_or_create_key(node.node_key))
    before = membership.roster.members.get(ipns_name(key))
    if before is not None and "node" in before.roles:
        return before.model_copy(update={"label": label})
    owner = membership.member.owner
    return Member(key=key, roles=("node",), owner=owner, label=label, admitted_ms=now_ms)
