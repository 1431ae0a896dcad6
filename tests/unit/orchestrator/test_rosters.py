"""Editing the roster: versions without a gap or a fork, whoever edits."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dim_pipelines.database.engine import Database, open_database
from dim_pipelines.domain.ipns import ipns_name
from dim_pipelines.domain.roster import Member
from dim_pipelines.errors import ConfigurationError, Forbidden, InputError, RolledBack
from dim_pipelines.identity.keys import public_bytes
from dim_pipelines.identity.roster import RosterView, edit_roster
from dim_pipelines.orchestrator.admissions import Admissions
from dim_pipelines.orchestrator.rosters import Rosters
from dim_pipelines.testing.networks import MadeNetwork, now_ms


@pytest.fixture
def network(tmp_path: Path) -> MadeNetwork:
    return MadeNetwork(tmp_path / "network")


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = open_database(f"sqlite:///{tmp_path / 'dim.db'}")
    yield opened
    opened.close()


@pytest.fixture
def rosters(network: MadeNetwork, database: Database) -> Rosters:
    made = Rosters(database, network.id)
    made.keep(network.roster, now_ms())
    return made


def member(number: int = 1, label: str = "one") -> Member:
    return Member(key=bytes([number]) * 32, roles=("node",), owner="ada", label=label, admitted_ms=1)


def opened(network: MadeNetwork, view: RosterView, one: Member) -> RosterView:
    signed, pages = edit_roster(view, network.admission, admit=[one], now_ms=now_ms())
    return RosterView.open(signed, pages, network.id, now_ms())


def test_a_roster_is_kept_whole_and_read_back(network: MadeNetwork, rosters: Rosters) -> None:
    found = rosters.newest()
    assert found is not None and found.signed == network.roster.signed and found.members == network.roster.members
    assert rosters.version() == 1
    assert not rosters.keep(network.roster, now_ms())
    assert Rosters(rosters._database, ipns_name(bytes(32))).newest() is None


def test_two_rosters_of_one_version_and_an_older_one_are_refused(network: MadeNetwork, rosters: Rosters) -> None:
    first = opened(network, network.roster, member(1))
    fork = opened(network, network.roster, member(2))
    assert first.version == fork.version == 2
    assert rosters.keep(first, now_ms())
    with pytest.raises(RolledBack, match="another version 2"):
        rosters.keep(fork, now_ms())
    third = opened(network, first, member(3))
    fourth = opened(network, third, member(4))
    rosters.keep(fourth, now_ms())
    with pytest.raises(RolledBack, match="newer"):
        rosters.keep(third, now_ms())
    assert rosters.version() == 4


def test_editors_that_begin_from_the_same_version_all_get_through(network: MadeNetwork, rosters: Rosters) -> None:
    admissions, begin = Admissions(rosters, network.admission), threading.Barrier(6)
    failures: list[Exception] = []

    def admit(number: int) -> None:
        begin.wait()
        try:
            admissions.admit(network.roster, [member(number)], now_ms())
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=admit, args=(number,)) for number in range(1, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = rosters.newest()
    assert not failures and found is not None and found.version == 7
    assert {ipns_name(bytes([number]) * 32) for number in range(1, 7)} <= found.members.keys()


def test_an_equal_entry_makes_no_new_version(network: MadeNetwork, rosters: Rosters) -> None:
    admissions = Admissions(rosters, network.admission)
    view = admissions.admit(network.roster, [member()], now_ms())
    assert admissions.admit(view, [member()], now_ms()).version == view.version == 2
    assert admissions.admit(view, [member(label="renamed")], now_ms()).version == 3


def test_a_revoked_key_is_out_for_good(network: MadeNetwork, rosters: Rosters) -> None:
    admissions = Admissions(rosters, network.admission)
    view = admissions.admit(network.roster, [member()], now_ms())
    name = ipns_name(member().key)
    gone = admissions.revoke(view, name, "stolen", now_ms())
    assert gone.revoked[name].reason == "stolen" and name not in gone.members
    assert admissions.revoke(gone, name, "again", now_ms()).version == gone.version
    with pytest.raises(Forbidden, match="stolen"):
        admissions.admit(gone, [member()], now_ms())
    with pytest.raises(InputError):
        admissions.revoke(gone, ipns_name(b"x" * 32), "nobody", now_ms())


def test_without_the_admission_key_nothing_is_edited(network: MadeNetwork, rosters: Rosters) -> None:
    admissions = Admissions(rosters, None)
    assert not admissions.can_edit
    with pytest.raises(Forbidden, match="not in this home"):
        admissions.admit(network.roster, [member()], now_ms())
    assert rosters.version() == 1


def test_the_root_key_lets_the_admission_key_sign_on(network: MadeNetwork, rosters: Rosters) -> None:
    admissions = Admissions(rosters, network.admission)
    later = network.roster.delegation.not_after_ms + 1
    with pytest.raises(Forbidden, match="may not sign"):
        admissions.admit(network.roster, [member()], later)
    stranger = Ed25519PrivateKey.generate()
    with pytest.raises(ConfigurationError, match="another network"):
        admissions.renew(network.roster, stranger, later)
    view = admissions.renew(network.roster, network.root, later)
    assert view.delegation.not_after_ms > later and view.version == 2
    assert ipns_name(member().key) in admissions.admit(view, [member()], later).members
    assert public_bytes(network.admission) == view.delegation.key
